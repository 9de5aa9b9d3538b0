"""Make a model as sure as it is right: `u2pl calibrate`; --help tells more."""

from u2pl_hf.commands.calibrate import main

if __name__ == "__main__":
    main()
