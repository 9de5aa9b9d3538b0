"""Do unlabelled images pay on my data? Or finished runs side by side: `u2pl compare`; --help tells more."""

from u2pl_hf.commands.compare import main

if __name__ == "__main__":
    main()
