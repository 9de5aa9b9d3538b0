"""Tables of several runs: queue, records, one renderer."""
