//! Where in a table something went wrong, and how it is taken out.

use toml::de::{DeArray, DeValue, Error, ValueDeserializer};

use super::{report::Span, section::Value};

/// What is wrong: where it is, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// The place of a value or of its key; of the whole table when nothing inside it is wrong.
    pub place: Span,
    /// The way to the value; empty for the whole table.
    pub steps: Vec<Step>,
    /// Whether the key is at fault, so that nobody has looked at the value.
    pub is_key: bool,
}

impl Fault {
    /// What is at fault for `error`, which `read` ended with.
    pub(super) fn find<'i, T>(
        root: &Value<'i>,
        error: &Error,
        read: impl Fn(ValueDeserializer<'i>) -> Result<T, Error>,
    ) -> Self {
        let place = error.span().unwrap_or_else(|| root.span());
        let mut steps = find(root, &place);
        if let Some((index, place)) = culprit(root, &steps, error, read) {
            steps.push(Step::Item(index));
            return Self {
                place,
                steps,
                is_key: false,
            };
        }
        let is_key = at(root, &steps).is_some_and(|value| value.span() != place);
        Self {
            place,
            steps,
            is_key,
        }
    }

    /// The way to the table or list around it.
    pub(super) fn around(&self) -> &[Step] {
        self.steps.split_last().map_or(&[], |(_, around)| around)
    }
}

/// One step from a table or list to what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// Something that was taken out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    /// The place of the table or list that held it.
    pub from: Span,
    /// Its key; `None` in a list.
    pub key: Option<String>,
}

impl Removed {
    pub(super) fn key(from: &Span, key: &str) -> Self {
        Self {
            from: from.clone(),
            key: Some(key.to_owned()),
        }
    }
}

/// The item that is at fault for an error of the list that `steps` lead to: the one that, alone in
/// the list, brings the same error. Serde gives an item's error the place of the list when the
/// item's own type, and not its text, is what refuses it.
fn culprit<'i, T>(
    root: &Value<'i>,
    steps: &[Step],
    error: &Error,
    read: impl Fn(ValueDeserializer<'i>) -> Result<T, Error>,
) -> Option<(usize, Span)> {
    let list = at(root, steps).filter(|list| Some(list.span()) == error.span())?;
    let items = list.get_ref().as_array()?;
    items.iter().enumerate().find_map(|(index, item)| {
        let mut root = root.clone();
        if let DeValue::Array(items) = at_mut(&mut root, steps)?.get_mut() {
            *items = DeArray::from_iter([item.clone()]);
        }
        let alone = read(ValueDeserializer::from(root)).err()?;
        let is_same = alone.message() == error.message() && alone.span() == error.span();
        is_same.then(|| (index, item.span()))
    })
}

/// The way to what stands at `place`; empty when that is the table itself, or nowhere.
fn find(root: &Value<'_>, place: &Span) -> Vec<Step> {
    fn search(value: &Value<'_>, place: &Span, steps: &mut Vec<Step>) -> bool {
        if value.span() == *place {
            return true;
        }
        match value.get_ref() {
            DeValue::Table(table) => table.iter().any(|(key, value)| {
                steps.push(Step::Key(key.get_ref().to_string()));
                let found = key.span() == *place || search(value, place, steps);
                if !found {
                    steps.pop();
                }
                found
            }),
            DeValue::Array(items) => items.iter().enumerate().any(|(index, item)| {
                steps.push(Step::Item(index));
                let found = search(item, place, steps);
                if !found {
                    steps.pop();
                }
                found
            }),
            _ => false,
        }
    }
    let mut steps = Vec::new();
    search(root, place, &mut steps);
    steps
}

/// What `steps` lead to.
pub(super) fn at<'a, 'i>(root: &'a Value<'i>, steps: &[Step]) -> Option<&'a Value<'i>> {
    let mut steps = steps.iter();
    steps.try_fold(root, |value, step| match (value.get_ref(), step) {
        (DeValue::Table(table), Step::Key(key)) => table.get(key.as_str()),
        (DeValue::Array(items), Step::Item(index)) => items.get(*index),
        _ => None,
    })
}

/// What `steps` lead to.
fn at_mut<'a, 'i>(root: &'a mut Value<'i>, steps: &[Step]) -> Option<&'a mut Value<'i>> {
    let mut steps = steps.iter();
    steps.try_fold(root, |value, step| match (value.get_mut(), step) {
        (DeValue::Table(table), Step::Key(key)) => table.get_mut(key.as_str()),
        (DeValue::Array(items), Step::Item(index)) => items.get_mut(*index),
        _ => None,
    })
}

/// Takes out what `steps` lead to; `None` when they lead nowhere.
pub(super) fn remove(root: &mut Value<'_>, steps: &[Step]) -> Option<Removed> {
    let (last, around) = steps.split_last()?;
    let around = at_mut(root, around)?;
    let from = around.span();
    match (around.get_mut(), last) {
        (DeValue::Table(table), Step::Key(key)) => {
            table.remove(key.as_str())?;
            Some(Removed::key(&from, key))
        }
        (DeValue::Array(items), Step::Item(index)) => {
            let kept = std::mem::replace(items, DeArray::new()).into_iter();
            let kept = kept.enumerate().filter(|(at, _)| at != index);
            *items = kept.map(|(_, item)| item).collect();
            Some(Removed { from, key: None })
        }
        _ => None,
    }
}
