-- From version 4 of the ledger to version 5. The events that are there are indexed in the background.
ALTER TABLE progress ADD COLUMN term_key BLOB;
ALTER TABLE progress ADD COLUMN unindexed INTEGER NOT NULL DEFAULT 0;
UPDATE progress SET term_key = randomblob(32), unindexed = through;
CREATE TABLE terms (
    segment INTEGER NOT NULL,
    term INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (segment, term, offset)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 5;
