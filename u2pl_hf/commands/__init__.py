"""What `u2pl NAME` and training_scripts/NAME.py both call."""
