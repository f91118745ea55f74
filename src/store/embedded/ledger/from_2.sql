-- From version 2 of the ledger to version 3. The journal does not have yet what became of deliveries.
ALTER TABLE progress DROP COLUMN learnt;
ALTER TABLE progress ADD COLUMN subscriptions BLOB;
ALTER TABLE progress ADD COLUMN journaled INTEGER NOT NULL DEFAULT 0;
CREATE TABLE outbox (
    handler INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (handler, position)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 3;
