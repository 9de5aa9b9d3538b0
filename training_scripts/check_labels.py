"""Find labels that are likely wrong: `u2pl check-labels`; --help tells more."""

from u2pl_hf.commands.check_labels import main

if __name__ == "__main__":
    main()
