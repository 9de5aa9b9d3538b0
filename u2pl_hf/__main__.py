"""`python -m u2pl_hf` is the program `u2pl`."""

from u2pl_hf.commands import main

if __name__ == "__main__":
    main()
