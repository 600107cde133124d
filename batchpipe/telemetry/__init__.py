"""Log lines, counters and prices."""
