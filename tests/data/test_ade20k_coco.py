"""ADE20K and COCO, tiny, from archives and folders as they are downloaded, to rows that `datasets` reads."""

import json
import re
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.prepared import NOISE, encoded, grey_png, ids, picture, write_folder, write_tar, write_zip
from u2pl_hf.data.prepare.archives import list_members, list_nested
from u2pl_hf.data.prepare.dataset import prepare
from u2pl_hf.data.prepare.layouts.ade20k import ade20k_layout
from u2pl_hf.data.prepare.layouts.coco import coco_layout
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError

JPEG = {"kind": "jpeg"}


def labels_of(folder):
    loaded = datasets.load_dataset(str(folder))
    return {subset: {row["id"]: np.array(row["label"]) for row in rows} for subset, rows in loaded.items()}


def prepared(layout, folder):
    result = prepare(layout, folder, workers=1)
    return result, labels_of(folder)


# ADE20K

INFO = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{n} \t0.1\t9\t1\tthing {n} , other\n" for n in range(1, 151))
ADE = "ADEChallengeData2016"


def ade_files():
    masks = {key: ids(values=range(151)) for key in ("ADE_train_00000001", "ADE_train_00000002", "ADE_val_00000001")}
    files = {f"{ADE}/objectInfo150.txt": INFO.encode(), f"{ADE}/sceneCategories.txt": b"ADE_train_00000001 airport"}
    for key, mask in masks.items():
        subset = "training" if "train" in key else "validation"
        files[f"{ADE}/images/{subset}/{key}.jpg"] = picture(**JPEG)
        files[f"{ADE}/annotations/{subset}/{key}.png"] = grey_png(mask)
    return files, masks


@pytest.mark.parametrize("write", [write_zip, write_folder, write_tar])
def test_ade20k(tmp_path, write):
    files, masks = ade_files()
    masks["ADE_val_00000001"][0, 0] = 150
    files[f"{ADE}/annotations/validation/ADE_val_00000001.png"] = grey_png(masks["ADE_val_00000001"])
    result, labels = prepared(ade20k_layout(list_members(write(tmp_path / "in", files))), tmp_path / "out")
    assert {subset: set(rows) for subset, rows in labels.items()} == {
        "train": {"ADE_train_00000001", "ADE_train_00000002"}, "validation": {"ADE_val_00000001"},
    }  # fmt: skip
    for rows in labels.values():
        for key, label in rows.items():
            for y, x in np.ndindex(label.shape):
                value = int(masks[key][y, x])
                assert label[y, x] == (255 if value == 0 else value - 1)
    assert labels["validation"]["ADE_val_00000001"][0, 0] == 149
    assert (result["classes"][0], result["classes"][149], len(result["classes"])) == ("thing 1", "thing 150", 150)
    source = load_source(str(tmp_path / "out"))
    assert source.palette[:2] == [[0, 0, 0], [128, 0, 0]]
    line = "images/training/{0}.jpg annotations/training/{0}.png"
    (tmp_path / "list.txt").write_text(line.format("ADE_train_00000002"))
    (labelled,), (unlabelled,) = resolve_split(str(tmp_path / "list.txt"), source.ids, 0)
    assert (source.ids[labelled], source.ids[unlabelled]) == ("ADE_train_00000002", "ADE_train_00000001")


ONE = f"{ADE}/annotations/training/ADE_train_00000001.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ONE: grey_png(ids(values=(3, 151)))}, "the mask holds the value 151, but annotations of ADE20K hold 0 for"),
        ({ONE: grey_png(ids(values=(3, 255)))}, "the mask holds the value 255, but annotations of ADE20K hold 0 for"),
        ({ONE: grey_png(ids(9, 9, values=range(151)))}, "the image is 12x9, but the mask 9x9"),
        ({ONE: picture()}, "the mask is RGB, not one channel"),
        ({ONE: b"no image"}, "ADE_train_00000001: the mask"),
        ({f"{ADE}/annotations/training/ADE_train_7.png": b""}, "ADE_train_7: the mask has no image"),
        ({f"{ADE}/annotations/validation/ADE_val_00000001.png": None}, "the validation image has no label"),
        ({f"{ADE}/objectInfo150.txt": None}, r"objectInfo150\.txt, .*, is there 0 times: pass it once"),
        ({"more/objectInfo150.txt": b""}, "is there 2 times"),
        ({f"{ADE}/objectInfo150.txt": INFO.replace("\t", " ").encode()}, "does not hold the classes 1 to 150"),
        ({f"{ADE}/objectInfo150.txt": INFO.replace("thing 7 ", "thing 8 ").encode()}, "does not hold the classes"),
        ({f"{ADE}/objectInfo150.txt": INFO[:2000].encode()}, "does not hold the classes"),
        ({f"{ADE}/objectInfo150.txt": b"\xff\xff"}, "is not a text file"),
    ],
)
def test_ade20k_that_cannot_be_used(tmp_path, change, message):
    files, _ = ade_files()
    files = {name: data for name, data in (files | change).items() if data is not None}
    with pytest.raises(InputError, match=message):
        prepare(ade20k_layout(list_members(write_zip(tmp_path / "in", files))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ade20k_without_some_files(tmp_path):
    files, _ = ade_files()
    for gone, message in (
        ("/images/", "no images found: .*ADEChallengeData2016"),
        ("/annotations/", "no labels found"),
    ):
        part = {name: data for name, data in files.items() if gone not in name}
        with pytest.raises(InputError, match=message):
            ade20k_layout(list_members(write_zip(tmp_path / "in", part)))
    del files[ONE]
    layout = ade20k_layout(list_members(write_zip(tmp_path / "in", files)))
    assert layout.notes == ["1 train images have no label: they are unlabelled rows"]


# COCO

# Things and stuff mixed; ids with gaps, not in order.
CATEGORIES = [
    {"supercategory": "a", "isthing": 1, "id": 18, "name": "dog"},
    {"supercategory": "a", "isthing": 0, "id": 92, "name": "banner"},
    {"supercategory": "a", "isthing": 1, "id": 1, "name": "person"},
    {"supercategory": "a", "isthing": 0, "id": 2, "name": "sky"},
    {"supercategory": "a", "isthing": 1, "id": 3, "name": "car"},
]
CLASS_OF = {1: 1, 3: 2, 18: 3, 92: 0, 2: 0}


def panoptic_image(crowd=False):
    """(segment of each pixel, segments_info): two dogs, a person, a car or a crowd of them, stuff, and no segment."""
    numbers = (1 + NOISE.choice(2**24 - 1, 6, replace=False)).tolist()
    info = [
        {
            "id": number,
            "category_id": category,
            "iscrowd": int(crowd and category == 3),
            "bbox": [0, 0, 1, 1],
            "area": 1,
        }
        for number, category in zip(numbers, (18, 18, 1, 3, 92, 2), strict=True)
    ]
    return NOISE.choice([0, *numbers], (9, 12)), info


def panoptic_png(segments):
    channels = [segments % 256, segments // 256 % 256, segments // 65536]
    return encoded(Image.fromarray(np.stack(channels, -1).astype(np.uint8)))


class Coco:
    """Files of COCO's downloads, made anew: images, panoptic JSON files by subset, their PNGs; and what they hold."""

    def __init__(self):
        self.truth = {key: panoptic_image(key == "000000000030") for key in ("000000000009", "000000000030")}
        self.truth["000000000139"] = panoptic_image()
        self.images = {f"{self.subset(key)}2017/{key}.jpg": picture(**JPEG) for key in self.truth}
        self.json = {
            name: {
                "info": {"year": 2017},
                "images": [{"id": int(key), "file_name": f"{key}.jpg"} for key in self.truth],
                "annotations": [
                    {"segments_info": info, "file_name": f"{key}.png", "image_id": int(key)}
                    for key, (_, info) in self.truth.items()
                    if self.subset(key) == name
                ],
                "categories": CATEGORIES,
            }
            for name in ("train", "val")
        }
        self.pngs = {key: panoptic_png(segments) for key, (segments, _) in self.truth.items()}

    @staticmethod
    def subset(key):
        return "val" if key == "000000000139" else "train"

    def annotation_files(self, folder, form):
        """Members of the annotations' archive: PNGs in zips (stored or deflated in it), or beside the JSON files."""
        files = {}
        for name, content in self.json.items():
            stem = f"panoptic_{name}2017"
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            files[f"annotations/{stem}.json"] = text
            pngs = {f"{stem}/{key}.png": png for key, png in self.pngs.items() if self.subset(key) == name}
            if form == "folder":
                files |= {f"annotations/{place}": png for place, png in pngs.items()}
            else:
                files[f"annotations/{stem}.zip"] = write_zip(folder / f"{stem}.zip", pngs).read_bytes()
        return files

    def members(self, folder, form="stored"):
        folder.mkdir(exist_ok=True)
        images = list_members(write_zip(folder / "images.zip", self.images))
        files = self.annotation_files(folder, form)
        if form in ("folder", "zips in a folder"):
            return images + list_members(write_folder(folder / "coco", files))
        path = folder / "panoptic_annotations_trainval2017.zip"
        kinds = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
        with zipfile.ZipFile(path, "w", kinds[form]) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return images + list_members(path)


@pytest.mark.parametrize("form", ["stored", "deflated", "folder", "zips in a folder"])
def test_coco_from_panoptic_annotations(tmp_path, form):
    coco = Coco()
    layout = coco_layout(coco.members(tmp_path / "in", form))
    before = {path for path in (tmp_path / "in").rglob("*")}
    result, labels = prepared(layout, tmp_path / "out")
    assert {path for path in (tmp_path / "in").rglob("*")} == before
    assert {subset: set(rows) for subset, rows in labels.items()} == {
        "train": {"000000000009", "000000000030"}, "validation": {"000000000139"},
    }  # fmt: skip
    assert result["classes"] == ["background", "person", "car", "dog"] and not result["notes"]
    for rows in labels.values():
        for key, label in rows.items():
            segments, info = coco.truth[key]
            for y, x in np.ndindex(label.shape):
                (found,) = [part for part in info if part["id"] == segments[y, x]] or [None]
                expected = 255 if found is None or found["iscrowd"] else CLASS_OF[found["category_id"]]
                assert label[y, x] == expected
    assert 2 not in labels["train"]["000000000030"] and 2 in labels["train"]["000000000009"]
    source = load_source(str(tmp_path / "out"))
    (tmp_path / "list.txt").write_text("train2017/000000000030.jpg masks/000000000030.png\n")
    (labelled,), _ = resolve_split(str(tmp_path / "list.txt"), source.ids, 0)
    assert source.ids[labelled] == "000000000030"


@pytest.mark.parametrize("folder", ["masks", "of_a_user"])
def test_coco_from_masks(tmp_path, folder):
    coco, truth = Coco(), {}
    for key in coco.truth:
        truth[key] = ids(values=(0, 1, 80, 255))
    masks = {f"{folder}/{key}.png": grey_png(mask) for key, mask in truth.items()}
    images = list_members(write_zip(tmp_path / "images.zip", coco.images | {"test2017/1.jpg": b""}))
    drawn = list_members(write_zip(tmp_path / "masks.zip", masks))
    layout = coco_layout(images + drawn) if folder == "masks" else coco_layout(images, drawn)
    result, labels = prepared(layout, tmp_path / "out")
    assert all((label == truth[key]).all() for rows in labels.values() for key, label in rows.items())
    assert len(labels["train"]) == 2 and len(labels["validation"]) == 1 and len(result["classes"]) == 81
    assert [result["classes"][n] for n in (0, 1, 14, 63, 80)] == ["background", "person", "bench", "tv", "toothbrush"]
    assert "1 images outside train2017 and val2017 are left out" in result["notes"]


def with_json(**changes):
    def change(coco):
        coco.json["train"] |= changes

    return change


def with_png(png):
    def change(coco):
        coco.pngs["000000000009"] = png

    return change


def without_png(coco):
    del coco.pngs["000000000009"]


def without_entry(coco):
    coco.json["train"]["annotations"].pop()


def other_things(coco):
    coco.json["val"]["categories"] = CATEGORIES[1:]
    coco.json["val"]["annotations"] = []


def cut_json(coco):
    coco.json["train"] = json.dumps(coco.json["train"]).encode()[:-20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_json(categories=CATEGORIES[1:]), r"000000000009\.png has a segment of category 18, which"),
        (with_json(categories=[{"id": 1, "name": "person"}]), "is no panoptic JSON file of COCO"),
        (with_json(annotations=[{"image_id": 9, "category_id": 1, "id": 3, "iscrowd": 0}]), "is no panoptic JSON"),
        (with_json(annotations=[{"file_name": "1.png"}]), "is no panoptic JSON"),
        (cut_json, r"panoptic_train2017\.json is no panoptic JSON"),
        (other_things, r"panoptic_train2017\.json and .*panoptic_val2017\.json name other things"),
        (with_png(panoptic_png(np.full((9, 12), 2**24 - 1))), "the mask holds the value 16777215, but the JSON"),
        (with_png(panoptic_png(np.zeros((9, 9), int))), "the image is 12x9, but the mask 9x9"),
        (with_png(b"no image"), "000000000009: the mask"),
        (without_png, r"names it, but there is no panoptic_train2017/000000000009\.png"),
        (without_entry, r"000000000030: .*panoptic_train2017\.json names no such image"),
        (lambda coco: coco.images.pop("train2017/000000000009.jpg"), "000000000009: the mask has no image"),
        (lambda coco: coco.json.pop("val"), "the validation image has no label"),
        (lambda coco: coco.json.clear(), "no labels found: looked for masks/.*panoptic_annotations_trainval2017"),
    ],
)  # fmt: skip
def test_coco_that_cannot_be_used(tmp_path, change, message):
    coco = Coco()
    change(coco)
    members = coco.members(tmp_path / "in") if coco.json else list_members(write_zip(tmp_path / "x", coco.images))
    with pytest.raises(InputError, match=message) as error:
        prepare(coco_layout(members), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_coco_that_lacks_files(tmp_path):
    coco = Coco()
    members = coco.members(tmp_path / "in")
    with pytest.raises(InputError, match=r"no images found: looked for train2017/\*\.jpg"):
        coco_layout([member for member in members if member.suffix != ".jpg"])
    with pytest.raises(
        InputError, match=r"no labels found of .*panoptic_train2017\.json: looked for panoptic_train2017/"
    ):
        coco_layout([member for member in members if member.suffix != ".zip"])
    with pytest.raises(InputError, match="no labels found: looked for PNGs in --masks"):
        coco_layout([member for member in members if member.suffix == ".jpg"], [])
    mask = {"masks/000000000009.png": grey_png(ids())}
    with pytest.raises(InputError, match=r"masks and panoptic annotations are both there \(.*/x: masks/0.*: pass one"):
        coco_layout(members + list_members(write_zip(tmp_path / "x", mask)))
    wrong = {"masks/000000000009.png": grey_png(ids(values=(0, 81)))}
    images = {name: data for name, data in coco.images.items() if "0009" in name}
    layout = coco_layout(list_members(write_zip(tmp_path / "y", images | wrong)))
    with pytest.raises(InputError, match=r"the mask holds the value 81, but there are 81 classes \(0\.\.80"):
        prepare(layout, tmp_path / "out")


def nested_zip(tmp_path, kind, damage=lambda data: data):
    inner = write_zip(tmp_path / "inner.zip", {f"{n}.bin": bytes([n]) * 3000 for n in range(9)}).read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", kind) as archive:
        archive.writestr("before.bin", b"0" * 5000)
        archive.writestr("a/inner.zip", damage(inner))
        archive.writestr("z.bin", b"1" * 5000)
    return next(m for m in list_members(tmp_path / "outer.zip") if m.suffix == ".zip")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_in_a_zip(tmp_path, kind):
    members = list_nested(nested_zip(tmp_path, kind))
    assert [member.name for member in members] == [f"{n}.bin" for n in range(9)]
    for n in (5, 0, 8, 3):
        assert members[n].read() == bytes([n]) * 3000
    assert re.search(r"outer\.zip: a/inner\.zip: 5\.bin$", str(members[5]))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_in_a_zip_that_is_damaged(tmp_path, kind):
    with pytest.raises(InputError, match=r"outer\.zip: a/inner\.zip is damaged or not complete"):
        list_nested(nested_zip(tmp_path, kind, damage=lambda data: data[:-40]))
    inner = list_members(write_tar(tmp_path / "x.tar", {"inner.zip": b""}))[0]
    with pytest.raises(InputError, match="is an archive in a tar: unpack the tar and pass --root"):
        list_nested(inner)
