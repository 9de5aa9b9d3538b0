"""Making a data set: layouts, masks, archives and shards."""
