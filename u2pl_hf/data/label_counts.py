"""How many pixels of which class the labelled images have."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from u2pl_hf.data.sources import VOID, Source


def label_counts(source: Source, rows: list[int], num_labels: int) -> np.ndarray:
    """Pixels of each class in the label of each of these rows, int64 (rows,num_labels); 255 is not counted."""

    def count(row: int) -> np.ndarray:
        return np.bincount(source.read_label(row).ravel(), minlength=VOID + 1)[:num_labels]

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(count, rows)))


def frequent_classes(counts: np.ndarray) -> list[int]:
    """The classes whose share of all counted pixels is more than 1/C: counts (rows,C)."""
    total = counts.sum(axis=0)
    return np.flatnonzero(total * len(total) > total.sum()).tolist()
