"""Where rows come from: the Hub, folders, parquet; ids, splits and published lists of them.

Used from outside: `splits.resolve_split`; the checks of `checks` and what they find, `Labelled`;
`class_list.read_class_list` and `ClassList`. `data.sources` is the door. In data also `rows`, `decode`, `id_lists` and
`published_splits`.
"""
