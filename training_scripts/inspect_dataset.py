"""Look at a data set before training: `u2pl inspect`; --help tells more."""

from u2pl_hf.commands.inspect import main

if __name__ == "__main__":
    main()
