"""Where a model starts: fresh, from a backbone's weights, from a checkpoint of others."""
