-- Version 7 of the tables: an event can have several subjects. A program of version 6 may work beside
-- it: it stores and reads the first subject of an event only.
ALTER TABLE events ADD COLUMN further_subjects text; -- a JSON list, behind `subject`; null if version 6 stored it
