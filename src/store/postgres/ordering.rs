//! Ordering keys as columns, and which deliveries wait for which.

use std::fmt::Write;

use crate::event::{KeyHash, OrderingKeys};

/// The columns `scope`, `key` and `keys` of several rows. `keys` is an array of bigint, as text: an
/// array of arrays cannot be given to the database.
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
        // Writing to a text cannot fail.
        write!(text, "{comma}{hash}").ok();
    }
    text.push('}');
    text
}

/// An expression: the position of the open delivery that `d`, a row or an alias of one with the columns
/// of `deliveries`, waits for; null where it may begin. It is the youngest older one that shares a key,
/// so that the deliveries of a line wait one for another; for all keys of a scope any older one will do. The
/// order by all columns of an index makes sure that the index is used.
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

/// Whether `c`, a row of `claims`, and `d` share a key.
pub(super) fn share_a_key(c: &str, d: &str) -> String {
    format!(
        "{c}.scope = {d}.scope AND ({d}.key = 0 OR {c}.keys[1] = 0
            OR {c}.keys && coalesce({d}.keys, ARRAY[{d}.key]))"
    )
}
