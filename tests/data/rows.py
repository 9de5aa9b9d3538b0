"""Small data sets for the tests of u2pl_hf.data."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from u2pl_hf.data.source.rows import ArrowRows
from u2pl_hf.data.sources import Source


def encode(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def make_table(
    images: list[bytes], labels: list[bytes] | None = None, ids: list[str] | None = None
) -> datasets.Dataset:
    columns = {
        "id": ids or [f"im_{i}" for i in range(len(images))],
        "image": [{"bytes": b, "path": None} for b in images],
    }
    if labels is not None:
        columns["label"] = [{"bytes": b, "path": None} for b in labels]
    features = {name: datasets.Value("string") if name == "id" else datasets.Image(decode=False) for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def make_source(images: list[bytes], labels: list[bytes] | None = None) -> Source:
    table = make_table(images, labels)
    columns = {"image": "image"} | ({"label": "label"} if labels is not None else {})
    return Source(ArrowRows(table, columns), list(table["id"]))


def numbered_source(count: int, size: int = 12) -> Source:
    """Image number i is filled with i, its label with i % 4."""
    images = [encode(np.full((size, size, 3), i, np.uint8)) for i in range(count)]
    labels = [encode(np.full((size, size), i % 4, np.uint8)) for i in range(count)]
    return make_source(images, labels)


def write_parquet(
    folder: Path, table: datasets.Dataset, shards: int = 1, group: int = 1, subset: str = "train"
) -> Path:
    """The table as parquet files with `group` rows per row group; ids are in the statistics."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = table.shard(shards, shard, contiguous=True).with_format("arrow")[:]
        path = folder / "data" / f"{subset}-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(
            part, path, row_group_size=group, compression="none", use_dictionary=False, write_statistics=["id"]
        )
    return folder
