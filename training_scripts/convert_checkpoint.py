"""Make a model folder of a checkpoint that the published U2PL code wrote: `u2pl convert`; --help tells more."""

from u2pl_hf.commands.convert import main

if __name__ == "__main__":
    main()
