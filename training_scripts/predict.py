"""Segment photographs with a trained model: `u2pl predict`; --help tells more."""

from u2pl_hf.commands.predict import main

if __name__ == "__main__":
    main()
