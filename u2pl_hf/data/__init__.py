"""From any data set to two endless streams: sources, splits, augmentation, streams."""
