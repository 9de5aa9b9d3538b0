"""Make a model folder of a published checkpoint, of U2PL or UniMatch V2: `u2pl convert`; --help tells more."""

from u2pl_hf.commands.convert import main

if __name__ == "__main__":
    main()
