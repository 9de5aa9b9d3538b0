"""Where rows come from: the Hub, folders, parquet; ids, splits, published lists. `data.sources` is the door."""
