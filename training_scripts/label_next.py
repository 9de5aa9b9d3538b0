"""Say which unlabelled images to label next: `u2pl next`; --help tells more."""

from u2pl_hf.commands.next import main

if __name__ == "__main__":
    main()
