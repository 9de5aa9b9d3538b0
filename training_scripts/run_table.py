"""Measure a table: queue its runs, pass over the finished ones, render it; see u2pl_hf/commands/table.py."""

from u2pl_hf.commands.table import main

if __name__ == "__main__":
    main()
