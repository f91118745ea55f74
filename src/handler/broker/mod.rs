//! The parts that several kinds share, those that are clients of a broker or a database.

pub(super) mod connector;
pub(super) mod idle;
pub(super) mod reconnecting;
pub(super) mod template;
pub(super) mod url;
