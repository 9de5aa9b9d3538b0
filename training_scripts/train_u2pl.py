"""Train SupOnly, U2PL or another method from a recipe: `u2pl train`; --help tells more."""

from u2pl_hf.commands.train import main

if __name__ == "__main__":
    main()
