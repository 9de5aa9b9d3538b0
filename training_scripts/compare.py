"""Put finished runs side by side; see u2pl_hf/commands/compare.py."""

from u2pl_hf.commands.compare import main

if __name__ == "__main__":
    main()
