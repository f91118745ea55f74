-- Version 4 of the tables: a delivery that is queued behind the one before it of its key says so by
-- its place in the line alone. A program of version 3 would not wake it, and must not work beside it.
DROP INDEX deliveries_waiting;
CREATE INDEX deliveries_waiting ON deliveries (behind, handler) WHERE behind IS NOT NULL;
