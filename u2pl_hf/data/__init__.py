"""From any data set to two endless streams: `source` reads rows, `stream` orders and augments, `prepare` makes sets."""
