"""The training run: arguments, inputs, loop, checkpoints, tracking."""
