-- Version 8 of the tables: what operators have done, and which handlers they have paused. A program of
-- version 7 may work beside it: it knows of no pauses, and goes on with paused handlers.
CREATE TABLE audit (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    who text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    reason text NOT NULL
);

CREATE TABLE pauses (
    handler text PRIMARY KEY,
    since timestamptz NOT NULL,
    who text NOT NULL,
    reason text NOT NULL
);
