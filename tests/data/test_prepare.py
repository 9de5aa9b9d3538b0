import dataclasses
import io
import json
import os
import re
import shutil
import signal
import struct
from collections import Counter, namedtuple
from pathlib import Path
from types import SimpleNamespace

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.data.prepared import encoded, grey_png, ids, palette_png, picture, write_folder, write_tar
from u2pl_hf.data.prepare import archives, shards
from u2pl_hf.data.prepare import dataset as prepare_module
from u2pl_hf.data.prepare.archives import list_members
from u2pl_hf.data.prepare.dataset import prepare
from u2pl_hf.data.prepare.dataset_card import render_card
from u2pl_hf.data.prepare.layouts.folder import folder_layout
from u2pl_hf.data.prepare.shards import plan_shards
from u2pl_hf.data.source.class_list import ClassList, parse_class_list
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError

CLASSES = ClassList(("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
TURNED = Image.Exif()
TURNED[0x0112] = 6


def strange_files():
    """Everything that is unusual and yet fine."""
    pairs = {
        "plain": (picture(kind="jpeg", quality=90), grey_png(ids())),
        "palette": (picture(), palette_png(ids())),
        "pixel": (picture(1, 1), grey_png(ids(1, 1, values=(0, 1, 2)))),
        "cmyk": (picture(mode="CMYK", kind="jpeg"), grey_png(ids())),
        "rgba": (picture(mode="RGBA"), grey_png(ids())),
        "grey": (picture(mode="L"), grey_png(ids())),
        "deep": (grey_png(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600), grey_png(ids())),
        "turned": (picture(kind="jpeg", exif=TURNED), grey_png(ids(9, 12))),
        "one_bit": (picture(), encoded(Image.fromarray(ids(values=(0, 1)).astype(bool)))),
        "straße/日本 x": (picture(), grey_png(ids())),
        "nothing": (picture(), grey_png(ids(values=(255,)))),
    }
    files = {}
    for name, (image, mask) in pairs.items():
        suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
        files[f"images/{name}.{suffix}"] = image
        files[f"masks/{name}.png"] = mask
    return files | {"unlabelled/more.png": picture()}


def layout_of(*paths, validation="3"):
    members = [member for path in paths for member in list_members(path)]
    return folder_layout(members, classes=ClassList(CLASSES.names), validation=validation)


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def parquet(folder, subset):
    return [pq.ParquetFile(path) for path in sorted((folder / "data").glob(f"{subset}-*.parquet"))]


def counted(mask):
    """Pixels per value, by Pillow alone."""
    with Image.open(io.BytesIO(mask)) as image:
        return Counter(int(value) for value in np.array(image).ravel())


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange")
    files = strange_files()
    write_folder(folder / "in", files)
    layout = layout_of(folder / "in")
    return files, layout, prepare(layout, folder / "out", shards=2), folder / "out"


def test_every_row_arrives_as_it_was(strange):
    files, layout, _, out = strange
    assert {path.parent for path in (out / "data").iterdir()} == {out / "data"}
    seen = {}
    for subset in ("train", "validation"):
        source = load_source(str(out), subset)
        assert source.class_names == ["a", "b", "c"]
        for index, name in enumerate(source.ids):
            image, label = (source.rows.cell(index, role) for role in ("image", "label"))
            original = next(data for key, data in files.items() if key.split("/", 1)[1].rsplit(".", 1)[0] == name)
            assert image["bytes"] == original
            seen[name] = subset
            if name == "more":
                assert label is None
                continue
            with Image.open(io.BytesIO(label["bytes"])) as png:
                assert (png.format, png.mode) == ("PNG", "L")
                stored = np.array(png)
            with Image.open(io.BytesIO(files[f"masks/{name}.png"])) as mask:
                assert np.array_equal(stored, np.array(mask).astype(np.uint8))
            assert source.read_image(index).shape[:2] == stored.shape
    assert seen == {row.id: row.subset for row in layout.rows}
    assert len(seen) == 12


def test_larger_images_are_shrunk_with_their_masks(tmp_path):
    """Masks by their nearest pixels; an image that its EXIF turns is upright then; small ones stay to the byte."""
    rng, masks, turned = np.random.default_rng(0), {}, Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter to the right
    rows, columns = np.mgrid[:60, :80]
    pixels = np.stack([4 * rows, 3 * columns, np.full_like(rows, 128)], axis=-1).astype(np.uint8)
    files = {f"images/{name}.png": encoded(Image.fromarray(pixels)) for name in ("large", "more")}
    files["images/small.png"] = encoded(Image.fromarray(pixels[::4, ::4]))
    files["images/photo.jpg"] = encoded(Image.fromarray(pixels), "jpeg", quality=100)
    files["images/turned.jpg"] = encoded(Image.fromarray(np.rot90(pixels)), "jpeg", quality=100, exif=turned)
    for name, shape in (("small", (15, 20)), ("large", (60, 80)), ("photo", (60, 80)), ("turned", (60, 80))):
        masks[name] = rng.integers(0, 3, shape, dtype=np.uint8)
        files[f"masks/{name}.png"] = grey_png(masks[name])
    layout = layout_of(write_folder(tmp_path / "in", files), validation="0")
    result = prepare(dataclasses.replace(layout, longest_side=20), tmp_path / "out")
    source, paths = load_source(str(tmp_path / "out"), "train"), {}
    for index, name in enumerate(source.ids):
        cell, image = source.rows.cell(index, "image"), source.read_image(index)
        paths[name] = cell["path"]
        assert image.shape == (15, 20, 3) and (name == "small") == (cell["bytes"] in files.values())
        # The middle of what pixel (6, 9) covers.
        if name != "small":
            assert np.allclose(image[6, 9], [4 * 25.5, 3 * 37.5, 128], atol=4), name
        if name != "more":
            step = masks[name].shape[0] // 15
            assert np.array_equal(source.read_label(index), masks[name][step // 2 :: step, step // 2 :: step])
    assert paths == {
        "large": "large.png",
        "more": "more.png",
        "photo": "photo.jpg",
        "small": "small.png",
        "turned": "turned.jpg",
    }
    assert sum(result["subsets"]["train"]["pixels"].values()) == 4 * 15 * 20


def test_counts_are_those_of_the_masks(strange):
    files, layout, result, out = strange
    for subset, counts in result["subsets"].items():
        rows = [row for row in layout.rows if row.subset == subset]
        direct = sum((counted(files[row.mask.name]) for row in rows if row.mask), Counter())
        assert counts["pixels"] == {name: direct[i] for i, name in enumerate("abc")}
        assert counts["ignored_pixels"] == direct[255]
        assert (counts["rows"], counts["unlabelled"]) == (len(rows), sum(row.mask is None for row in rows))
    assert [item["id"] for item in result["warnings"]] == ["nothing"]
    assert json.loads((out / "prepare.json").read_text()) == result
    source = load_source(str(out))
    with_label = {name for name, has in zip(source.ids, source.rows.has_label(), strict=True) if has}
    assert with_label == {row.id for row in layout.rows if row.mask and row.subset == "train"}


def test_each_row_is_found_by_the_footer_alone(strange):
    files, _, _, out = strange
    order = []
    for file in [*parquet(out, "train"), *parquet(out, "validation")]:
        assert set(file.schema_arrow.metadata) == {b"huggingface", b"u2pl_hf"}
        classes = json.loads(file.schema_arrow.metadata[b"u2pl_hf"])["classes"]
        rows = file.read().to_pylist()
        assert file.metadata.num_row_groups == len(rows) == len(classes) > 0
        for number, (row, present) in enumerate(zip(rows, classes, strict=True)):
            group = file.metadata.row_group(number)
            assert group.num_rows == 1
            assert group.column(0).statistics.min == group.column(0).statistics.max == row["id"]
            for column in range(1, group.num_columns):
                assert not group.column(column).is_stats_set
            assert {group.column(c).compression for c in range(group.num_columns)} == {"UNCOMPRESSED"}
            direct = counted(files[f"masks/{row['id']}.png"]) if row["label"] else None
            assert present == (direct and sorted(set(direct) - {255}))
            order.append(row["id"])
    ordered = [
        row.id for subset in ("train", "validation") for s in plan_shards(strange[1].rows, subset, 2) for row in s.rows
    ]
    assert order == ordered


def test_load_dataset_reads_it_also_as_a_stream(strange):
    _, _, result, out = strange
    loaded = datasets.load_dataset(str(out))
    assert {name: len(rows) for name, rows in loaded.items()} == {n: s["rows"] for n, s in result["subsets"].items()}
    assert loaded["train"].features["label"] == datasets.Image()
    stream = datasets.load_dataset(str(out), split="train", streaming=True)
    assert [row["id"] for row in stream] == loaded["train"]["id"]
    assert stream.num_shards == 2


def test_card(strange):
    _, _, result, out = strange
    text = (out / "README.md").read_text(encoding="utf-8")
    for subset, counts in result["subsets"].items():
        assert f"| {subset} | {counts['rows']} | {counts['labelled']} | {counts['unlabelled']} |" in text
    shares = [100 * s["pixels"]["b"] / sum(s["pixels"].values()) for s in result["subsets"].values()]
    assert f"| 1 | b | {shares[0]:.3f} | {shares[1]:.3f} |" in text
    assert "train_u2pl.py RECIPE.yaml --dataset DIR --split all" in text
    assert "size_categories:\n- n<1K" in text
    assert (out / "class_names.txt").read_text() == "a\nb\nc\n"


@pytest.mark.parametrize("name", ["a|b", "x\ny", "`<b>`"])
def test_names_of_classes_break_no_table_of_the_card(name):
    counts = {"rows": 1, "labelled": 1, "unlabelled": 0, "pixels": {"a": 1, name: 3}, "ignored_pixels": 0}
    result = {"subsets": {"train": counts}, "classes": ["a", name], "splits": {}, "skipped": [], "warnings": [],
              "notes": [f"{name} is left out"]}  # fmt: skip
    about = SimpleNamespace(title="T", text="t", licence="l", metadata={})
    text = render_card(SimpleNamespace(about=about), result, {"train": 1}, "0")
    (row,) = [line for line in text.splitlines() if line.endswith("| 75.000 |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4 and "<b>" not in text
    assert len([line for line in text.splitlines() if "is left out" in line]) == 1


def test_shards_follow_rows_and_bytes():
    Row = namedtuple("Row", "id subset image mask")
    File = namedtuple("File", "size")

    def count(rows, size=1, shards=None):
        return len(plan_shards([Row(str(n), "train", File(size), None) for n in range(rows)], "train", shards))

    assert [count(n) for n in (0, 1, 8, 9, 100, 1000)] == [0, 1, 1, 2, 13, 16]
    assert count(100, size=100 << 20) == 13
    assert count(1000, size=10 << 20) == 40
    assert (count(10, shards=3), count(2, shards=3)) == (3, 2)
    planned = plan_shards([Row(str(n), "validation", File(1), None) for n in range(10)], "validation", 3)
    assert [s.name for s in planned] == [f"validation-0000{n}-of-00003" for n in range(3)]
    assert [row.id for s in planned for row in s.rows] == list("0123456789")


def bad_files():
    cut = picture(90, 90, kind="jpeg")
    good = grey_png(ids())
    return {
        "images/cut.jpg": cut[: len(cut) // 2], "masks/cut.png": grey_png(ids(90, 90)),
        "images/text.jpg": b"hello", "masks/text.png": good,
        "images/high.png": picture(), "masks/high.png": grey_png(ids(values=(0, 77))),
        "images/rgb.png": picture(), "masks/rgb.png": picture(),
        "images/size.png": picture(), "masks/size.png": grey_png(ids(5, 6)),
        "images/turned_ü.jpg": picture(kind="jpeg", exif=TURNED), "masks/turned_ü.png": good,
        "images/halfmask.png": picture(), "masks/halfmask.png": good[:60],
        "images/twice.png": picture(), "images/twice.jpg": picture(), "masks/twice.png": good,
        "masks/lonely.png": good,
    }  # fmt: skip


REASONS = {
    "cut": "the image cannot be read .*truncated",
    "text": "the image is not a readable image; a TIFF must",
    "high": "the value 77, but there are 3 classes",
    "rgb": "the mask is RGB",
    "size": "image is 12x9, but the mask 5x6$",
    "turned_ü": "image is 9x12, but the mask 12x9, because its EXIF",
    "halfmask": "the mask cannot be read",
    "twice": "the id is there 2 times",
    "lonely": "the mask has no image",
}


def test_bad_rows_are_told_together_or_left_out(tmp_path, caplog):
    files = {
        f"{kind}/ok{n}.png": data
        for n in range(4)
        for kind, data in (("images", picture()), ("masks", grey_png(ids())))
    }
    write_folder(tmp_path / "in", files | bad_files())
    layout, out = layout_of(tmp_path / "in", validation="0"), tmp_path / "out"
    with (
        caplog.at_level("WARNING"),
        pytest.raises(InputError, match=r"9 of 13 rows cannot be used, .*out\.bad\.txt.*--skip_bad"),
    ):
        prepare(layout, out)
    listed = dict(line.split("\t") for line in (tmp_path / "out.bad.txt").read_text(encoding="utf-8").splitlines())
    assert listed.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert re.search(reason, listed[name]), listed[name]
        assert f"bad row {name}: " in caplog.text
    assert not out.exists()
    result = prepare(layout, out, skip_bad=True, shards=13)  # some shards are left without a row
    assert {item["id"]: item["reason"] for item in result["skipped"]} == listed
    assert sorted(datasets.load_dataset(str(out))["train"]["id"]) == ["ok0", "ok1", "ok2", "ok3"]
    assert not (tmp_path / "out.bad.txt").exists()
    assert "9 rows that could not be used are left out" in (out / "README.md").read_text(encoding="utf-8")


def test_bad_rows_must_leave_something_of_each_subset(tmp_path):
    files = {f"images/{name}.png": picture() for name in ("train/1", "val/1")}
    files |= {"masks/train/1.png": grey_png(ids()), "masks/val/1.png": b"no image"}
    layout = layout_of(write_folder(tmp_path / "in", files))
    with pytest.raises(InputError, match=r"1 of 2 rows .* no row of validation is left"):
        prepare(layout, tmp_path / "out", skip_bad=True)


def many_files(count=12):
    names = [f"i{n}" for n in range(count)]
    return {f"images/{n}.png": picture() for n in names} | {f"masks/{n}.png": grey_png(ids()) for n in names}


def killed_after(renames, action):
    """Run `action` in a process of its own that is killed right before the given rename; whether that came to pass."""
    child = os.fork()
    if child == 0:
        left, replace, rename = [renames], Path.replace, Path.rename

        def counting(original):
            def move(self, target):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, target)

            return move

        Path.replace, Path.rename = counting(replace), counting(rename)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path):
    files = many_files()
    plain = write_folder(tmp_path / "plain", {name: data for name, data in files.items() if "images" in name})
    packed = write_tar(tmp_path / "masks.tgz", {name: data for name, data in files.items() if "masks" in name}, "w:gz")
    layout = layout_of(plain, packed)
    prepare(layout, tmp_path / "whole", shards=3)
    out, kills = tmp_path / "out", 0
    # Each run is allowed one more rename than the one before has made in all: none of its work may be lost.
    for renames in range(30):
        if not killed_after(renames, lambda: prepare(layout, out, shards=3)):
            break
        assert not out.exists()
        kills += 1
        if renames % 3 == 2:
            shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    assert kills > 3
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_finished_shards_are_kept_until_the_input_changes(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "in", many_files())
    out, written, write = tmp_path / "out", [], shards.write_shard

    def failing(shard, *arguments):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(shard.name)
        write(shard, *arguments)

    monkeypatch.setattr(shards, "write_shard", failing)
    with pytest.raises(InputError, match=r"No space left on device\); run the same"):
        prepare(layout_of(tmp_path / "in"), out, shards=3)
    first = list(written)
    monkeypatch.setattr(shards, "write_shard", lambda shard, *a: (written.append(shard.name), write(shard, *a)))
    copy = shutil.copytree(tmp_path / "out.partial", tmp_path / "again.partial")
    prepare(layout_of(tmp_path / "in"), out, shards=3)
    assert len(first) == 2
    assert len(written) == len(set(written)) == 6
    written.clear()
    (tmp_path / "in" / "images" / "i3.png").write_bytes(picture(12, 9))
    with caplog.at_level("INFO"):
        prepare(layout_of(tmp_path / "in"), tmp_path / "again", shards=3)
    assert len(written) == 6
    assert "starting afresh" in caplog.text
    assert not copy.exists()


def test_several_processes_give_the_same_bytes(tmp_path, strange):
    _, layout, _, out = strange
    prepare(layout, tmp_path / "out", shards=2, workers=2)
    assert snapshot(tmp_path / "out") == snapshot(out)


def test_output_that_exists_and_too_small_a_disk_are_refused(tmp_path, monkeypatch):
    layout = layout_of(write_folder(tmp_path / "in", many_files(4)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        prepare(layout, tmp_path / "full")
    write_folder(tmp_path, {"mine.partial/precious": b"x"})
    with pytest.raises(InputError, match="is in the way and was not made here"):
        prepare(layout, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine.partial")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(InputError, match=r"needs about .* GB, but 0.00 GB are free"):
        prepare(layout, tmp_path / "new" / "out")
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    prepare(layout, tmp_path / "empty")
    prepare(layout, tmp_path / "new" / "out")
    assert snapshot(tmp_path / "empty") == snapshot(tmp_path / "new" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "in", "new"]


def test_only_needed_members_of_a_compressed_tar_are_unpacked(tmp_path, monkeypatch):
    files = many_files(4) | {"other/huge.bin": b"x" * 10_000}
    path, sizes, unpack = write_tar(tmp_path / "x.tgz", files, "w:gz"), [], archives._unpack

    def measuring(container, names, target):
        unpack(container, names, target)
        sizes.append(sum(member.size for member in list_members(target)))

    monkeypatch.setattr(archives, "_unpack", measuring)
    prepare(layout_of(path), tmp_path / "out")
    assert sizes == [sum(len(data) for name, data in files.items() if "huge" not in name)]


def prepared(folder, masks, classes, images=None, skip_bad=False):
    """`prepare` of these masks, each with an image of its size."""
    shutil.rmtree(folder, ignore_errors=True)
    files = {f"masks/{name}": data for name, data in masks.items()}
    for name, data in masks.items():
        files[f"images/{name}"] = (images or {}).get(name) or picture(*Image.open(io.BytesIO(data)).size)
    members = list_members(write_folder(folder / "in", files))
    layout = folder_layout(members, classes=parse_class_list(classes, "list"), validation="0")
    return prepare(layout, folder / "out", skip_bad=skip_bad)


def test_masks_of_0_and_255_need_a_name_for_255(tmp_path):
    wire = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    masks = {f"{n}.png": grey_png(wire) for n in range(3)} | {"bit.png": encoded(Image.fromarray(wire).convert("1"))}
    for classes in ("bg\nfg", "bg,0\nfg,1", "bg,0,0,0\nfg,255,0,0"):
        with pytest.raises(
            InputError, match=r"^3 masks hold nothing but 0 and 255, such as .*, in lines such as"
        ) as caught:
            prepared(tmp_path / "a", masks, classes)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["in"]
        advice = str(caught.value).rsplit("such as ", 1)[1].replace(" and ", "\n")
        result = prepared(tmp_path / "a", masks, advice)
        assert result["subsets"]["train"]["pixels"] == {"bg": 12, "fg": 12}
        assert result["warnings"] == result["notes"] == []


def test_classes_that_no_training_mask_shows_are_told(tmp_path, caplog):
    masks = {f"{n}.png": grey_png(np.array([[0, 1, 255]], np.uint8)) for n in range(3)}
    result = prepared(tmp_path / "a", masks, "bg\nfg\ncar\ntree")
    line = "no labelled training mask holds a pixel of car, tree"
    assert result["warnings"] == [{"id": None, "reason": line}]
    assert json.loads((tmp_path / "a/out/prepare.json").read_text())["warnings"] == result["warnings"]
    assert f"\n- {line}\n" in (tmp_path / "a/out/README.md").read_text()
    assert f"warning: {line}" in caplog.messages
    nothing = {f"{n}.png": grey_png(np.array([[7]], np.uint8)) for n in range(30)}
    result = prepared(tmp_path / "b", nothing, "bg,0\nvoid,7")
    assert len(result["warnings"]) == 31 and result["warnings"][0]["reason"].endswith("pixel of bg")
    assert "warning: 30 labels are ignored everywhere, such as 0; `prepare.json` names them" in caplog.messages


@pytest.mark.parametrize(("orientation", "size"), [(2, (12, 9)), (3, (12, 9)), (4, (12, 9)), (5, (9, 9)), (8, (9, 9))])
@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_masks_that_may_not_be_turned_with_their_images_are_told(tmp_path, orientation, size, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    images = {f"{n}.png": picture(*size, kind=kind, exif=exif) for n in range(3)}
    label = Image.fromarray(ids(*size, values=(0, 1, 2)))
    for options, told in (({}, 3), ({"exif": exif}, 0)):
        result = prepared(tmp_path / "a", dict.fromkeys(images, encoded(label, **options)), "a\nb\nc", images)
        told_of = [item["reason"] for item in result["warnings"]]
        assert len(told_of) == bool(told)
        assert not told or re.match(
            "3 images or their masks are turned by an EXIF orientation, such as [012]: ", told_of[0]
        )
    stored = load_source(str(tmp_path / "a/out"))
    with Image.open(io.BytesIO(encoded(label, exif=exif))) as mask:
        assert np.array_equal(stored.read_label(0), np.asarray(ImageOps.exif_transpose(mask)))


def test_shapes_tell_whether_a_mask_is_turned(tmp_path):
    images = {"a.png": picture(kind="jpeg", exif=TURNED)}
    label = ids(values=(0, 1, 2))
    turned, as_stored = grey_png(np.rot90(label, -1)), encoded(Image.fromarray(label), exif=TURNED)
    for mask in (turned, as_stored):
        assert prepared(tmp_path / "a", {"a.png": mask}, "a\nb\nc", images)["warnings"] == []
        assert np.array_equal(load_source(str(tmp_path / "a/out")).read_label(0), np.rot90(label, -1))
    twice = encoded(Image.fromarray(np.rot90(label, -1)), exif=TURNED)
    for mask, message in ((grey_png(label), "its EXIF.*turn the mask"), (twice, "the mask's own EXIF")):
        with pytest.raises(InputError, match=message):
            prepared(tmp_path / "a", {"a.png": mask}, "a\nb\nc", images)


def test_images_of_more_bands_are_told(tmp_path):
    for bands in (2, 5):
        data = cv2.imencode(".tiff", np.zeros((9, 12), np.uint8))[1].tobytes()
        entry = struct.pack("<HHI", 277, 3, 1)  # samples per pixel
        assert data.count(entry) == 1
        place = data.index(entry) + len(entry)
        images = {"a.png": data[:place] + struct.pack("<H", bands) + data[place + 2 :]}
        with pytest.raises(InputError, match="not a readable image; a TIFF must have 1, 3 or 4 bands of 8 bits"):
            prepared(tmp_path / "a", {"a.png": grey_png(ids())}, "a\nb\nc", images)


def test_a_folder_made_again_is_read_again(tmp_path):
    """`datasets` keeps what it has read by the name and the sizes of a folder."""
    masks = {f"{n}.png": grey_png(np.array([[0, 1, 1], [0, 0, 1]], np.uint8)) for n in range(3)}
    for classes, expected in (("a,0\nb,1", [[0, 1, 1], [0, 0, 1]]), ("b,1\na,0", [[1, 0, 0], [1, 1, 0]])):
        prepared(tmp_path / "a", masks, classes, {name: grey_png(np.zeros((2, 3), np.uint8)) for name in masks})
        assert load_source(str(tmp_path / "a/out")).read_label(0).tolist() == expected
