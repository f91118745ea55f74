//! Reads the journal: segments sequentially, or one event at a known position.

mod damage_log;
mod directory;
mod event_reader;
mod scan;

pub(super) use self::{
    damage_log::DamageLog,
    directory::Directory,
    event_reader::{EventReader, ReadError},
    scan::{Scan, ScanItem},
};
