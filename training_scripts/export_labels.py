"""Write a data set's masks for an annotation tool: `u2pl export-labels`; --help tells more."""

from u2pl_hf.commands.export_labels import main

if __name__ == "__main__":
    main()
