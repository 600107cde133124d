"""The data model: records, rows, outcomes, refusals, schedules and views. Pure."""
