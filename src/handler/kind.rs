//! The one place where a kind of handler loses its type.

use std::{fmt, num::NonZeroUsize, path::Path};

use super::{AnyHandler, BuildContext, BuildError, HandlerKind};
use crate::{cleartext::CleartextWarning, spanned};

/// A [`HandlerKind`] with its type erased: one line of [`KINDS`](super::KINDS).
#[derive(Clone, Copy)]
pub struct Kind {
    /// [`HandlerKind::KIND`].
    pub kind: &'static str,
    /// [`HandlerKind::EXAMPLE`].
    pub example: &'static str,
    read: fn(spanned::Deserializer<'_>) -> Result<Box<dyn Factory>, spanned::Error>,
}

impl Kind {
    /// The line for `K`.
    pub const fn of<K: HandlerKind>() -> Self {
        Self {
            kind: K::KIND,
            example: K::EXAMPLE,
            read: |settings| Ok(Box::new(Settings(K::deserialize(settings)?))),
        }
    }

    /// Reads a handler's settings.
    ///
    /// # Errors
    ///
    /// When they are not this kind's.
    pub fn read(
        &self,
        settings: spanned::Deserializer<'_>,
    ) -> Result<Box<dyn Factory>, spanned::Error> {
        (self.read)(settings)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kind").field(&self.kind).finish()
    }
}

/// Settings that have been read and can be built: a [`HandlerKind`] with its type erased.
pub trait Factory {
    /// See [`HandlerKind::cleartext_warnings`].
    fn cleartext_warnings(&self) -> Vec<CleartextWarning>;

    /// See [`HandlerKind::own_file`].
    fn own_file(&self) -> Option<(&'static str, &Path)>;

    /// See [`HandlerKind::CONCURRENCY`].
    fn concurrency(&self) -> NonZeroUsize;

    /// Builds the handler.
    ///
    /// # Errors
    ///
    /// See [`HandlerKind::build`].
    fn build(self: Box<Self>, context: &BuildContext) -> Result<AnyHandler, BuildError>;
}

struct Settings<K>(K);

impl<K: HandlerKind> Factory for Settings<K> {
    fn cleartext_warnings(&self) -> Vec<CleartextWarning> {
        self.0.cleartext_warnings()
    }

    fn own_file(&self) -> Option<(&'static str, &Path)> {
        self.0.own_file()
    }

    fn concurrency(&self) -> NonZeroUsize {
        K::CONCURRENCY
    }

    fn build(self: Box<Self>, context: &BuildContext) -> Result<AnyHandler, BuildError> {
        self.0.build(context).map(AnyHandler::new)
    }
}
