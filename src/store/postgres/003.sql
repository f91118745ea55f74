-- Version 3 of the tables: order by sets of ordering keys. A program of an older version knows of one
-- key for each event, and must not work beside it. What is open by now is taken to be about its whole
-- scope, which for an event of Zoom is the account: it may wait longer, and overtakes nothing.

ALTER TABLE events DROP COLUMN lane;

DROP INDEX deliveries_by_lane;
ALTER TABLE deliveries
    DROP COLUMN lane,
    ADD COLUMN scope bigint,                  -- of its ordering keys; null where it has none
    ADD COLUMN key bigint NOT NULL DEFAULT 0, -- the first ordering key; 0 for all keys of the scope
    ADD COLUMN keys bigint[],                 -- where there are several: all of them
    ADD COLUMN behind bigint;                 -- the position of what a queued one waits for
UPDATE deliveries d SET scope = greatest(1, ('x' || encode(substring(sha256(convert_to(
        replace(CASE WHEN e.key LIKE 'zoom.%' THEN regexp_replace(e.key, '/[^/]*$', '')
            ELSE e.key END, '\\', '\'), 'UTF8')) FOR 8), 'hex'))::bit(64)::bigint & 9223372036854775807)
    FROM events e WHERE e.day = d.day AND e.position = d.position AND e.key IS NOT NULL;
UPDATE deliveries SET state = 0 WHERE state <> 0;
CREATE INDEX deliveries_by_key ON deliveries (handler, scope, key, position)
    WHERE scope IS NOT NULL;
CREATE INDEX deliveries_waiting ON deliveries (behind, handler) WHERE state = 1;

-- The ordering keys behind the first one, of open deliveries.
CREATE TABLE further_keys (
    handler integer NOT NULL,
    scope bigint NOT NULL,
    key bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (handler, scope, key, position)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);

-- Who is at work on what.
DROP TABLE held;
CREATE TABLE claims (
    handler integer NOT NULL,
    first bigint NOT NULL,       -- the position of the delivery that was claimed
    position bigint NOT NULL,    -- of the one that is attempted, when a run has gone on from there
    scope bigint,
    keys bigint[] NOT NULL,      -- 0 alone for all keys of the scope
    token uuid NOT NULL,         -- what a settlement has to show
    until timestamptz NOT NULL,  -- when anybody else may take it
    PRIMARY KEY (handler, first)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
-- Partial, so that whoever looks for a delivery cannot take it.
CREATE INDEX claims_by_scope ON claims (scope, handler) WHERE scope IS NOT NULL;
