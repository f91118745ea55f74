//! Ordering keys as columns, and the SQL that finds what a delivery waits for.

use std::fmt::Write;

use crate::event::{KeyHash, OrderingKeys};

/// The columns `scope`, `key` and `keys` of several rows. `keys` is an array of bigint in text
/// form, since PostgreSQL cannot take an array of arrays of different lengths as a parameter.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) scope: Vec<Option<KeyHash>>,
    pub(super) key: Vec<KeyHash>,
    pub(super) keys: Vec<Option<String>>,
}

impl Columns {
    pub(super) fn push(&mut self, keys: Option<&OrderingKeys>) {
        let hashes = keys.map(OrderingKeys::keys).unwrap_or_default();
        self.scope.push(keys.map(OrderingKeys::scope));
        self.key.push(hashes.first().copied().unwrap_or(0));
        self.keys.push((hashes.len() > 1).then(|| array(hashes)));
    }
}

fn array(hashes: &[KeyHash]) -> String {
    let mut text = String::from("{");
    for (place, hash) in hashes.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        write!(text, "{comma}{hash}").ok();
    }
    text.push('}');
    text
}

/// An SQL expression: the position of the open delivery that blocks `d`, or null. `d` is a row, or
/// an alias of one, with the columns of `deliveries`. The blocker is the youngest older delivery
/// that shares a key, so that the deliveries of an ordering group form a chain. For a delivery with
/// all keys of its scope any older delivery is a blocker. Ordering by all columns of an index makes
/// the planner use that index.
pub(super) fn blocker(d: &str) -> String {
    let of_key = |table: &str, key: &str| {
        format!(
            "SELECT o.position FROM {table} o WHERE o.handler = {d}.handler AND o.scope = {d}.scope
                AND o.key = {key} AND o.position < {d}.position
             ORDER BY o.handler DESC, o.scope DESC, o.key DESC, o.position DESC LIMIT 1"
        )
    };
    let (of_scope, of_first) = (of_key("deliveries", "0"), of_key("deliveries", "k.key"));
    let of_further = of_key("further_keys", "k.key");
    format!(
        "greatest(({of_scope}),
         CASE WHEN {d}.key = 0 THEN (SELECT o.position FROM deliveries o
            WHERE o.handler = {d}.handler AND o.scope = {d}.scope AND o.key > 0
                AND o.position < {d}.position ORDER BY o.handler, o.scope, o.key LIMIT 1)
         ELSE (SELECT max(b.position) FROM unnest(coalesce({d}.keys, ARRAY[{d}.key])) AS k (key)
            CROSS JOIN LATERAL (({of_first}) UNION ALL ({of_further})) b) END)"
    )
}

/// An SQL condition: whether `c`, a row of `claims`, and `d` share a key.
pub(super) fn share_a_key(c: &str, d: &str) -> String {
    format!(
        "{c}.scope = {d}.scope AND ({d}.key = 0 OR {c}.keys[1] = 0
            OR {c}.keys && coalesce({d}.keys, ARRAY[{d}.key]))"
    )
}
