-- Version 1 of the ledger. A projection of the journal, except for what became of deliveries.
-- Times are microseconds since 1970. Positions are the journal's: segment number << 32 | offset.

-- How far the journal has been read. Changed in the transaction that adds what was read.
CREATE TABLE progress (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    through INTEGER NOT NULL, -- the position after the last record read
    records INTEGER NOT NULL, -- how many records were read
    learnt INTEGER NOT NULL   -- up to where the table of copies is on stable storage
) STRICT;
INSERT INTO progress VALUES (1, 0, 0, 0);

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

-- Who gets what, and how that stands: 0 ready, 1 queued behind another of its lane, 2 parked,
-- 3 done, 4 skipped. Of the open ones (0 and 1) of a lane, the oldest is ready.
CREATE TABLE deliveries (
    handler INTEGER NOT NULL,
    position INTEGER NOT NULL,
    lane INTEGER,              -- hash of the key; null where no order holds
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER NOT NULL,   -- once it is not open: when that came to be
    since INTEGER,             -- when its first attempt began
    replay TEXT,               -- why it is, or was, replayed
    replays INTEGER NOT NULL DEFAULT 0, -- how often
    why TEXT,                  -- why it was parked or skipped
    PRIMARY KEY (handler, position)
) STRICT, WITHOUT ROWID;
-- What can be claimed.
CREATE INDEX ready ON deliveries (handler, due_at, position) WHERE state = 0;
-- Who is next in a lane.
CREATE INDEX lanes ON deliveries (handler, lane, position) WHERE state < 2 AND lane IS NOT NULL;
-- What keeps a segment from being deleted; what is parked; what is oldest.
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

PRAGMA user_version = 1;
