-- From version 1 of the ledger to version 2. Version 1 had one key for each event, a hash of which
-- was its lane. Order is given up until the service starts: it finds handlers that are to be ordered
-- and are not, and reads the ordering keys of what is open in the journal.
DROP INDEX lanes;
ALTER TABLE deliveries RENAME COLUMN lane TO scope;
ALTER TABLE deliveries ADD COLUMN key INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN keys BLOB;
ALTER TABLE deliveries ADD COLUMN behind INTEGER;
UPDATE deliveries INDEXED BY unfinished SET scope = NULL, state = 0
    WHERE handler IN (SELECT id FROM handlers) AND state IN (0, 1) AND state < 3;
UPDATE handlers SET ordered = 0;
CREATE INDEX ordered ON deliveries (handler, scope, key, position)
    WHERE state < 2 AND scope IS NOT NULL;
CREATE INDEX waiting ON deliveries (handler, behind) WHERE state = 1;
CREATE TABLE further_keys (
    handler INTEGER NOT NULL,
    scope INTEGER NOT NULL,
    key INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (handler, scope, key, position)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
