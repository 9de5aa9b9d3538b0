"""Evaluate a trained model: `u2pl evaluate`; --help tells more."""

from u2pl_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
