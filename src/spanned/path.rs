//! Where a value stands in a TOML document.

use std::{fmt, ops::Range};

use toml::{Spanned, de::DeValue};

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path of the value.
    pub path: Path,
    /// The span of the value, or of its key.
    pub span: Range<usize>,
    /// Whether the span is that of the key, so that nothing has read the value.
    pub is_key: bool,
}

/// The path of a value from the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub(super) Vec<Step>);

/// One step from a table or an array to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// Whether this is the path of the root.
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of the entry `key` of the table at this path.
    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    pub(super) fn step(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// The path of the table or array that holds the value at this path.
    pub fn parent(&self) -> Self {
        Self(
            self.0
                .split_last()
                .map_or(&[][..], |(_, rest)| rest)
                .to_vec(),
        )
    }

    /// The value at this path from `root`.
    pub fn find<'a, 'i>(&self, root: &'a Spanned<DeValue<'i>>) -> Option<&'a Spanned<DeValue<'i>>> {
        self.0.iter().try_fold(root, |value, step| match step {
            Step::Key(key) => value.get_ref().get(key.as_str()),
            Step::Index(index) => value.get_ref().get(*index),
        })
    }
}

/// The keys as TOML writes them, with dots between them. An index is left out.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        f.write_str(&keys.collect::<Vec<_>>().join("."))
    }
}
