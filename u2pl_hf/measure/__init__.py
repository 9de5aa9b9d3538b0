"""Several runs: queue, records, tables, room, comparisons and their verdict."""
