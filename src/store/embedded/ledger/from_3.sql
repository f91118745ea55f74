-- From version 3 of the ledger to version 4. What can be attempted is known in memory. The column `behind`
-- stays where it is, since taking it away would write the whole table anew: nothing reads it.
UPDATE deliveries SET state = 0 WHERE handler IN (SELECT id FROM handlers) AND state = 1 AND state < 3;
DROP INDEX ready;
DROP INDEX waiting;
DROP INDEX ordered;
DROP TABLE further_keys;
PRAGMA user_version = 4;
