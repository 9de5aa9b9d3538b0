"""Try a trained model in the browser: `u2pl app`; --help tells more."""

from u2pl_hf.commands.app import main

if __name__ == "__main__":
    main()
