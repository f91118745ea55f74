-- Version 2 of the tables: stores that were moved in, one row for each move that ended, and one for
-- the move that is under way or was cut short, if any.
CREATE TABLE moves (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    began_at timestamptz NOT NULL,
    ended_at timestamptz, -- no service works before that
    place bigint,         -- of the last event, in the store that it came from
    event uuid            -- that event
);
