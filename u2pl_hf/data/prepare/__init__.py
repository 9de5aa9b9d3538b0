"""Making a data set: layouts find images and masks, archives read them, masks become class ids, shards are written."""
