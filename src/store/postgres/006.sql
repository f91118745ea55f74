-- Version 6 of the tables: a claim says how far its run can go, so that nobody queues what is in it. A
-- program of version 5 may work beside it: its claims do not say.
ALTER TABLE claims ADD COLUMN last bigint; -- the position of the last delivery of its run, where known
