-- Version 7 of the tables: an event can have several subjects, and is looked up by each of them and by
-- its key. A program of version 6 may work beside it. It reads the first subject of an event only. An
-- event that it stores has no terms until the upkeep of a program of version 7 has added them, so it
-- is missing in a look-up until then. Where it creates or drops the tables of a day, those of `terms`
-- are left to a program of version 7.
ALTER TABLE events ADD COLUMN further_subjects text; -- a JSON list, behind `subject`; null if version 6 stored it

-- The random key of the hashes in `terms`.
CREATE TABLE term_key (
    id integer PRIMARY KEY CHECK (id = 1),
    key bytea NOT NULL
);
INSERT INTO term_key VALUES
    (1, decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

-- Where the events are that a number, an extension or a partition key is looked up by; partitioned as
-- the event.
CREATE TABLE terms (
    day date NOT NULL,
    term bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (day, term, position)
) PARTITION BY LIST (day);

-- The events that may lack their terms: those of a day between two positions.
CREATE TABLE unindexed (
    day date NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    PRIMARY KEY (day, last, first)
);

DO $$
DECLARE
    day date;
BEGIN
    FOR day IN SELECT to_date(right(relname, 8), 'YYYYMMDD') FROM pg_inherits
        JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'events'::regclass
    LOOP
        EXECUTE format('CREATE TABLE terms_%s PARTITION OF terms FOR VALUES IN (%L)',
            to_char(day, 'YYYYMMDD'), day);
        INSERT INTO unindexed SELECT day, 0, last_value FROM positions;
    END LOOP;
END $$;

CREATE FUNCTION note_unindexed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO unindexed VALUES (NEW.day, NEW.position, NEW.position);
    RETURN NULL;
END $$;
CREATE TRIGGER unindexed AFTER INSERT ON events FOR EACH ROW
    WHEN (NEW.further_subjects IS NULL) EXECUTE FUNCTION note_unindexed();
