//! The table of kinds, in which a kind has no type.

use std::{fmt, num::NonZeroUsize};

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{AnyHandler, BuildContext, BuildError, HandlerKind};
use crate::spanned;

/// A [`HandlerKind`] with its type erased: one line of [`KINDS`](super::KINDS).
#[derive(Clone, Copy)]
pub struct Kind {
    /// [`HandlerKind::KIND`].
    pub kind: &'static str,
    /// [`HandlerKind::EXAMPLE`].
    pub example: &'static str,
    /// [`HandlerKind::CONCURRENCY`].
    pub concurrency: NonZeroUsize,
    read: fn(spanned::Deserializer<'_>) -> Result<Build, spanned::Error>,
    /// The JSON Schema of the settings, if the kind has one.
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// [`HandlerKind::build`] of settings that have been read.
pub type Build = Box<dyn FnOnce(&mut BuildContext) -> Result<AnyHandler, BuildError>>;

impl Kind {
    /// The line for `K`, whose settings describe themselves.
    pub(super) const fn of<K: HandlerKind + JsonSchema>() -> Self {
        Self {
            schema: Some(K::json_schema),
            ..Self::undescribed::<K>()
        }
    }

    /// The line for `K`, without a schema of its settings.
    pub const fn undescribed<K: HandlerKind>() -> Self {
        Self {
            kind: K::KIND,
            example: K::EXAMPLE,
            concurrency: K::CONCURRENCY,
            read: |settings| {
                let settings = K::deserialize(settings)?;
                Ok(Box::new(|context| {
                    settings.build(context).map(AnyHandler::new)
                }))
            },
            schema: None,
        }
    }

    /// Reads the settings of a handler.
    ///
    /// # Errors
    ///
    /// When the settings are not those of this kind.
    pub fn read(&self, settings: spanned::Deserializer<'_>) -> Result<Build, spanned::Error> {
        (self.read)(settings)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kind").field(&self.kind).finish()
    }
}
