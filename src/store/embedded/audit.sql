-- Version 1 of the audit log. Times are microseconds since 1970.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

CREATE TABLE pauses (
    handler TEXT PRIMARY KEY,
    since INTEGER NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 1;
