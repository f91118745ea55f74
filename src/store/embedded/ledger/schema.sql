-- Version 5 of the ledger. A projection of the journal.
-- Times are microseconds since 1970. Positions are the journal's: segment number << 32 | offset.

-- How far the journal has been read. Changed in the transaction that adds what was read.
CREATE TABLE progress (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    through INTEGER NOT NULL, -- the position after the last record read
    records INTEGER NOT NULL, -- how many records were read
    subscriptions BLOB,       -- who gets the events there, as the journal said last; null if it never did
    journaled INTEGER NOT NULL, -- whether the journal has what became of deliveries
    term_key BLOB NOT NULL,   -- the random key of the hashes in `terms`
    unindexed INTEGER NOT NULL -- the position up to which events may be missing in `terms`
) STRICT;
INSERT INTO progress VALUES (1, 0, 0, NULL, 1, randomblob(32), 0);

-- Events, each once; their bodies stay in the journal. Ids are UUIDs of version 7, so their index
-- is one by time of arrival as well.
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    key TEXT,
    occurred_at INTEGER,
    received_at INTEGER NOT NULL
) STRICT;

-- Where the events are that a number, an extension or a partition key is looked up by.
CREATE TABLE terms (
    segment INTEGER NOT NULL,  -- of the event's position
    term INTEGER NOT NULL,     -- a hash under `progress.term_key`
    offset INTEGER NOT NULL,   -- of the event's position
    PRIMARY KEY (segment, term, offset)
) STRICT, WITHOUT ROWID;

-- The latest provider time at which each topic was reported.
CREATE TABLE topics (
    topic TEXT PRIMARY KEY,
    latest INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Handlers by name, those that are no longer configured too. The counts follow `deliveries`, in the
-- same transactions, since counting would take longer the more there are.
CREATE TABLE handlers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    configured INTEGER NOT NULL,
    ordered INTEGER NOT NULL,
    open INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Who gets what, and how that stands: 0 open, 2 parked, 3 done, 4 skipped.
CREATE TABLE deliveries (
    handler INTEGER NOT NULL,
    position INTEGER NOT NULL,
    scope INTEGER,             -- of its ordering keys; null where no order holds
    key INTEGER NOT NULL DEFAULT 0, -- the first ordering key; 0 for all keys of the scope
    keys BLOB,                 -- where there are several: all of them, 8 bytes each, big-endian
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER NOT NULL,   -- once it is not open: when that came to be
    since INTEGER,             -- when its first attempt began
    replay TEXT,               -- why it is, or was, replayed
    replays INTEGER NOT NULL DEFAULT 0, -- how often
    why TEXT,                  -- why it was parked or skipped
    PRIMARY KEY (handler, position)
) STRICT, WITHOUT ROWID;
-- What is open; what keeps a segment from being deleted; what is parked; what is oldest.
CREATE INDEX unfinished ON deliveries (handler, state, position) WHERE state < 3;

-- Attempts that did not end well.
CREATE TABLE attempts (
    handler INTEGER NOT NULL,
    position INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    took_ms INTEGER NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (handler, position, started_at)
) STRICT, WITHOUT ROWID;

-- What commands have changed and the journal has not been told of.
CREATE TABLE outbox (
    handler INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (handler, position)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 5;
