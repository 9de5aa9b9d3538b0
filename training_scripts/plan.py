"""Which recipe fits this machine and these images: `u2pl plan`; --help tells more."""

from u2pl_hf.commands.plan import main

if __name__ == "__main__":
    main()
