"""Valid files, damaged in a thousand ways: each is read, or refused in one short line; nothing else is raised.

The ways follow from a fixed seed. A failure shows the bytes that it comes from.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl_hf.data.prepare.archives import DAMAGED, list_members
from u2pl_hf.data.source.class_list import read_class_list
from u2pl_hf.data.source.decode import decode_image, decode_label
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.recipe.command import recipe_arguments

# What is put in the place of a word, or between two bytes.
TOKENS = [
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\t", b"\x1b[2J", "\u2028".encode(), "\x85".encode(),
    "\u3000".encode(), "\udcff".encode(errors="surrogatepass"), "\N{COMBINING ACUTE ACCENT}".encode(),
    "\N{ARABIC-INDIC DIGIT THREE}\N{SUPERSCRIPT TWO}".encode(), b"#", b"'", b'"', b",", b":", b": ", b"/", b"../",
    b"null", b"true", b"no", b"0", b"-1", b"1e400", b"-0.0", b".nan", b"inf", b"NaN", b"9" * 400, b"9" * 5000,
    b"1" + b"0" * 30, b"0x10", b"1:30", b"1/0", b"2026-01-01", b"!!timestamp x", b"!!binary x", b"!!set {a, b}",
    b"<<: {a: 1}", b"&a [*a]", b"[1, [2]]", b"{a: {b: c}}", b"{" * 300, b"[" * 5000, b"x" * 300, b"x/" * 2500,
]  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: bytes, words, lines, the end."""
    for _ in range(rng.integers(1, 4)):
        start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        words = content.split(b" ")
        place, token = int(rng.integers(len(words))), TOKENS[rng.integers(len(TOKENS))]
        match rng.integers(7):
            case 0:
                content = content[:start] + bytes([int(rng.integers(256))]) + content[start + 1 :]
            case 1:
                content = content[:start]
            case 2:
                content = content[:start] + content[end:]
            case 3:
                content = content[:end] + content[start:end] + content[end:]
            case 4:
                content = content[:start] + token + content[start:]
            case 5:
                content = b" ".join([*words[:place], token, *words[place + 1 :]])
            case 6:
                lines = content.splitlines(keepends=True)
                content = b"".join(lines[i] for i in rng.permutation(len(lines)))
    return content


def survives(kind: str, read: Callable[[bytes], object], valid: list[bytes], rounds: int) -> None:
    """Fail unless what is valid is read, and what is damaged is read or refused in one line."""
    rng, refused = np.random.default_rng(list(kind.encode())), 0
    for content in valid:
        read(content)
    for number in range(rounds):
        content = damaged(valid[number % len(valid)], rng)
        try:
            read(content)
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 610, (content, str(error))
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {type(error).__name__}({error}) of {content[:3000]!r}") from error
    assert refused > rounds / 20


def test_recipes(tmp_path):
    path = tmp_path / "recipe.yaml"
    recipes = sorted((Path(__file__).parents[2] / "training_scripts" / "recipes").glob("*.yaml"))
    valid = [b"\n".join(line for line in r.read_bytes().splitlines() if line[:1] != b"#") for r in recipes[::5]]
    valid += [b"class_names: [sky, road]\naspp_dilations: [2, 4, 6]\nlow_rank: null\ntf32: no\nseed: 7\nepochs: 1.5\n"]

    def read(content: bytes):
        path.write_bytes(content)
        return recipe_arguments(path, {})

    survives("recipe", read, valid, 600)


def test_class_lists(tmp_path):
    lines = b"# classes\nroad , 128,64,128\nsky , 70,130,180\nvoid , 0,0,0\n"
    valid = [b"road\nsky\n", lines, b"a 1 2 3\nb 4 5 6\n", b"a,0\nb,255\n"]
    objects = {"road": [1, 2, 3], "sky": [4, 5, 6]}, ["road", "sky"], {"road": 0, "sky": 255, "void": 7}

    def read(content: bytes, suffix: str):
        path = tmp_path / f"classes{suffix}"
        path.write_bytes(content)
        return read_class_list(path)

    survives("class list", lambda content: read(content, ".txt"), valid, 600)
    valid = [json.dumps(content).encode() for content in objects]
    survives("class list in JSON", lambda content: read(content, ".json"), valid, 600)


def test_splits(tmp_path):
    path, ids = tmp_path / "ids.txt", [f"photo_{n}" for n in range(8)]

    def listed(content: bytes):
        path.write_bytes(content)
        return resolve_split(str(path), ids, 0)

    def named(content: bytes):
        split = run_arguments(split=content.decode(errors="surrogateescape")).split
        return resolve_split(split, ids, 0, splits_dir=tmp_path)

    survives("split list", listed, [b"photo_1\nphoto_3 \nphoto_7\n"], 400)
    survives("split", named, [b"1/4", b"0.5", b"3", b"all"], 400)


def archive(kind: str) -> bytes:
    """Two small files in a zip or a tar."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("images/a.png", b"pixels " * 9)
            file.writestr("masks/b.png", b"ids " * 9, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(fileobj=buffer, mode=kind, format=tarfile.PAX_FORMAT) as file:
            for name in ("images/ä.png", "masks/b.png"):
                info = tarfile.TarInfo(name)
                info.size = 63
                file.addfile(info, io.BytesIO(b"pixels " * 9))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz"])
def test_archives(tmp_path, kind):
    numbers = iter(range(10_000))

    def read(content: bytes):
        path = tmp_path / f"{next(numbers)}.bin"  # another each time: open zip files are kept
        path.write_bytes(content)
        try:
            for member in list_members(path):
                member.read()
        except DAMAGED as error:  # of a member; the row's line says so
            raise InputError(f"{type(error).__name__} while it is read") from error
        finally:
            path.unlink()

    survives(f"archive {kind}", read, [archive(kind)], 300)


def pictures() -> list[bytes]:
    """Images of all the modes and formats that people have."""
    pixels = np.random.default_rng(0).integers(0, 200, (9, 7, 4), dtype=np.uint8)
    colour, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    exif = Image.Exif()
    exif[274] = 6
    made = [
        (colour, "PNG"), (colour, "JPEG"), (colour, "BMP"), (colour, "WEBP"), (grey, "PNG"), (grey, "TIFF"),
        (grey.convert("P"), "GIF"), (grey.convert("P"), "PNG"), (grey.convert("1"), "PNG"),
        (Image.fromarray(pixels), "PNG"), (colour.convert("CMYK"), "JPEG"), (grey.convert("LA"), "PNG"),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 300), "PNG"),
    ]  # fmt: skip
    buffers = [io.BytesIO() for _ in made]
    for buffer, (image, kind) in zip(buffers, made, strict=True):
        image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    return [buffer.getvalue() for buffer in buffers]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decode", [decode_image, decode_label])
def test_pictures(monkeypatch, decode):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)

    def read(content: bytes):
        return decode({"bytes": content, "path": None}, "photo_1")

    valid = pictures()
    if decode is decode_label:
        valid = [content for content in valid if Image.open(io.BytesIO(content)).mode in ("L", "P", "1")]
    survives(decode.__name__, read, valid, 1000)
