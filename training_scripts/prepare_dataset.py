"""Turn downloaded archives or folders of images and masks into a data set: `u2pl prepare`; --help tells more."""

from u2pl_hf.commands.prepare import main

if __name__ == "__main__":
    main()
