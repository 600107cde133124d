"""What everything is about: records, rows, outcomes, refusals, timetables and views. Pure."""
