-- Version 5 of the tables: the topics of an event that has very many are learnt after it was stored. A
-- program of version 4 may work beside it: it claims such an event without learning its topics, so
-- that an older event may not be told to be superseded until another replica has learnt them.
CREATE TABLE unlearnt (
    position bigint PRIMARY KEY,
    day date NOT NULL,
    learnt integer NOT NULL DEFAULT 0 -- how many of its topics are learnt
);
