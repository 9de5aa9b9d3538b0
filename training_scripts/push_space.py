"""Make a Space on the Hub, or a folder of one: `u2pl space`; --help tells more."""

from u2pl_hf.commands.space import main

if __name__ == "__main__":
    main()
