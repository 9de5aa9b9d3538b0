"""Export a trained model to ONNX: `u2pl export`; --help tells more."""

from u2pl_hf.commands.export import main

if __name__ == "__main__":
    main()
