"""Push a trained model to the Hub: `u2pl push`; --help tells more."""

from u2pl_hf.commands.push import main

if __name__ == "__main__":
    main()
