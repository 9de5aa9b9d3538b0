"""Tiny inputs for the tests of preparing: files by name, laid out as a folder, a tar or a zip."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0)
PALETTE = [255 - i // 3 for i in range(768)]  # far from the ids, so that grey levels taken for ids would show


def encoded(image, kind="png", **options):
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def picture(width=12, height=9, mode="RGB", kind="png", **options):
    pixels = NOISE.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), kind, **options)


def ids(width=12, height=9, values=(0, 1, 2, 255)):
    return NOISE.choice(values, (height, width)).astype(np.uint8)


def palette_png(array):
    image = Image.fromarray(array)
    image.putpalette(PALETTE)
    return encoded(image)


def grey_png(array):
    return encoded(Image.fromarray(array))


def write_folder(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
