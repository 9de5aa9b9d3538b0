"""Where rows come from: the Hub, folders, parquet; ids, splits and published lists of them."""
