import importlib.util
import unicodedata

import numpy as np
import pytest

from tests.data.prepared import grey_png, write_folder, write_tar, write_zip
from u2pl_hf.data.prepare.archives import list_members
from u2pl_hf.data.prepare.layouts import voc
from u2pl_hf.data.prepare.layouts.cityscapes import cityscapes_layout
from u2pl_hf.data.prepare.layouts.folder import folder_layout
from u2pl_hf.data.prepare.layouts.voc import voc_layout
from u2pl_hf.data.prepare.masks import infer_classes
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import InputError

VOC = "VOCdevkit/VOC2012"
TWO = ClassList(("a", "b"))


def voc_files(fine=("f1", "f2", "v1"), augmented=(), images=("f1", "f2", "a1", "a2", "v1", "none"), train="f1 f2"):
    files = {f"{VOC}/JPEGImages/{i}.jpg": b"" for i in images}
    files |= {f"{VOC}/SegmentationClass/{i}.png": b"" for i in fine}
    files |= {f"{VOC}/SegmentationClassAug/{i}.png": b"" for i in augmented}
    files[f"{VOC}/ImageSets/Segmentation/train.txt"] = train.replace(" ", "\n").encode()
    return files | {f"{VOC}/ImageSets/Segmentation/val.txt": b"v1\n"}


def table(layout):
    """(subset, file name of the image, folder of the mask, coding) by id."""
    rows = layout.rows
    return {r.id: (r.subset, r.image.path.name, r.mask and r.mask.path.parent.name, r.coding) for r in rows}


def test_voc_without_augmented_labels_follows_the_lists(tmp_path):
    for path in (write_folder(tmp_path / "root", voc_files()), write_tar(tmp_path / "x.tar", voc_files())):
        layout = voc_layout(list_members(path))
        fine = ("SegmentationClass", "ids")
        assert table(layout) == {
            "f1": ("train", "f1.jpg", *fine),
            "f2": ("train", "f2.jpg", *fine),
            "v1": ("validation", "v1.jpg", *fine),
        }
        assert not layout.notes
        assert not layout.splits
    for inside in ("root/VOCdevkit", f"root/{VOC}"):
        assert table(voc_layout(list_members(tmp_path / inside))) == table(layout)


def test_voc_fine_labels_go_before_augmented_ones(tmp_path):
    members = list_members(write_folder(tmp_path / "voc", voc_files(augmented=("f1", "v1"))))
    members += list_members(write_zip(tmp_path / "aug.zip", {"SegmentationClassAug/a1.png": b"", "__MACOSX/x": b""}))
    sbd = {f"benchmark_RELEASE/dataset/cls/{i}.mat": b"" for i in ("a1", "a2", "f2", "unknown")}
    members += list_members(write_tar(tmp_path / "b.tgz", sbd | {"benchmark_RELEASE/dataset/img/a2.jpg": b""}, "w:gz"))
    assert table(voc_layout(members)) == {
        "a1": ("train", "a1.jpg", "SegmentationClassAug", "ids"),
        "a2": ("train", "a2.jpg", "cls", "sbd"),
        "f1": ("train", "f1.jpg", "SegmentationClass", "ids"),
        "f2": ("train", "f2.jpg", "SegmentationClass", "ids"),
        "v1": ("validation", "v1.jpg", "SegmentationClass", "ids"),
    }


def test_voc_classic_split_only_when_it_is_whole(tmp_path):
    fine = [f"f{i}" for i in range(1464)]
    files = voc_files(fine=["v1"], augmented=[*fine, "a1"], images=[*fine, "a1", "v1"], train=" ".join(fine))
    path = write_zip(tmp_path / "x.zip", files)
    assert voc_layout(list_members(path)).splits == {"voc_classic/1464/labeled.txt": fine}
    del files[f"{VOC}/JPEGImages/f7.jpg"]
    layout = voc_layout(list_members(write_zip(tmp_path / "y.zip", files)))
    assert layout.splits == {}
    assert layout.notes == ["train.txt lists 1464 ids, 1 of them have no image or no label here"]


@pytest.mark.parametrize(
    "form", ["JPEGImages/{0}.jpg SegmentationClass/{0}.png", "{0}.jpg,{0}.png", "JPEGImages\\{0}.jpg\r"]
)
@pytest.mark.parametrize("augmented", [(), ("a1", "v1")])
def test_voc_lists_of_other_works(tmp_path, form, augmented):
    files = voc_files(augmented=augmented)
    for name, ids in (("train", ("f1", "f2")), ("val", ("v1",))):
        files[f"{VOC}/ImageSets/Segmentation/{name}.txt"] = "\n".join(map(form.format, ids)).encode()
    layout = voc_layout(list_members(write_folder(tmp_path, files)))
    assert subsets(layout) == {"train": {"f1", "f2", *augmented} - {"v1"}, "validation": {"v1"}}
    assert not layout.notes


@pytest.mark.parametrize("augmented", [(), ("a1", "v1")])
def test_voc_lists_of_no_use(tmp_path, augmented):
    name = f"{VOC}/ImageSets/Segmentation/val.txt"
    for number, (content, message) in enumerate((
        (b"x1\nx2", "val.txt: the data has none of its 2 images; a line of it is 'x1', an id of the data 'a1'"),
        (b"none", "none of the 1 images in .*val.txt has a label here"),
        (b"", "val.txt lists no image"),
        (b"\xff\xff", "val.txt is not a text file"),
        (b"v1\nv1.jpg", "val.txt lists 1 images more than once"),
        (b"f1\nf2\na1\nv1", "no image is left for training"),
    )):  # fmt: skip
        with pytest.raises(InputError, match=message):
            files = voc_files(augmented=augmented) | {name: content}
            voc_layout(list_members(write_folder(tmp_path / str(number), files)))
    layout = voc_layout(list_members(write_folder(tmp_path / "x", voc_files(augmented=augmented) | {name: b"v1\nf2"})))
    assert layout.notes == ["1 images are in train.txt and in val.txt: they are for validation"]


def test_a_damaged_list_in_a_zip(tmp_path):
    files = voc_files() | {f"{VOC}/ImageSets/Segmentation/val.txt": b"v1\n\n\n\n"}
    path = write_zip(tmp_path / "voc.zip", files)
    path.write_bytes(path.read_bytes().replace(b"v1\n\n\n\n", b"v2\n\n\n\n"))
    with pytest.raises(InputError, match=r"val\.txt cannot be read \(Bad CRC-32"):
        voc_layout(list_members(path))


def test_voc_palette_and_names():
    layout_colours = voc_colours_of_the_challenge()
    names, colours = voc.CLASSES.names, voc.CLASSES.colours
    assert colours[: len(layout_colours)] == layout_colours and colours[20] == (0, 64, 128)
    assert (len(names), names[0], names[1], names[20]) == (21, "background", "aeroplane", "tvmonitor")


def voc_colours_of_the_challenge():
    return ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
            (128, 128, 128), (64, 0, 0))  # fmt: skip


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("JPEGImages", "looked for JPEGImages"),
        ("SegmentationClass", "looked for SegmentationClass/"),
        ("val.txt", "val.txt found"),
        ("train.txt", "train.txt found"),
    ],
)
def test_voc_says_what_is_missing(tmp_path, gone, message):
    files = {name: data for name, data in voc_files().items() if gone not in name}
    with pytest.raises(InputError, match=message):
        voc_layout(list_members(write_folder(tmp_path / "x", files)))


def test_voc_two_years_and_no_scipy(tmp_path, monkeypatch):
    files = voc_files() | {"VOCdevkit/VOC2007/JPEGImages/0.jpg": b"", "VOCdevkit/VOC2007/SegmentationClass/0.png": b""}
    files |= {"VOCdevkit/VOC2007/ImageSets/Segmentation/val.txt": b"0"}
    assert set(table(voc_layout(list_members(write_folder(tmp_path / "a", files))))) == {"f1", "f2", "v1"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scipy"):
        voc_layout(list_members(write_folder(tmp_path / "b", voc_files() | {"dataset/cls/a1.mat": b""})))


def city_files():
    files = {}
    for subset, key in (("train", "aachen_0_1"), ("train", "aachen_0_2"), ("val", "ulm_0_1"), ("test", "bonn_0_1")):
        city = key.split("_")[0]
        files[f"leftImg8bit/{subset}/{city}/{key}_leftImg8bit.png"] = b""
        for ending in ("labelIds", "instanceIds", "color"):
            files[f"gtFine/{subset}/{city}/{key}_gtFine_{ending}.png"] = b""
    return files | {"gtFine/train/aachen/aachen_0_2_gtFine_labelTrainIds.png": b"", "README": b""}


def test_cityscapes(tmp_path):
    files = city_files()
    left = {name: data for name, data in files.items() if name.startswith("left")}
    right = {name: data for name, data in files.items() if name.startswith("gt")}
    members = list_members(write_zip(tmp_path / "1", left)) + list_members(write_zip(tmp_path / "2", right))
    layout = cityscapes_layout(members)
    assert table(layout) == {
        "aachen_0_1": ("train", "aachen_0_1_leftImg8bit.png", "aachen", "cityscapes"),
        "aachen_0_2": ("train", "aachen_0_2_leftImg8bit.png", "aachen", "ids"),
        "ulm_0_1": ("validation", "ulm_0_1_leftImg8bit.png", "ulm", "cityscapes"),
    }
    assert layout.rows[1].mask.name.endswith("labelTrainIds.png")
    assert layout.notes == ["1 images outside train and val are left out"]
    assert (len(layout.classes.names), layout.classes.colours[13]) == (19, (0, 0, 142))
    for half, message in ((left, "looked for gtFine"), (right, "looked for leftImg8bit")):
        with pytest.raises(InputError, match=message):
            cityscapes_layout(list_members(write_zip(tmp_path / "half", half)))


def test_cityscapes_lonely_files(tmp_path):
    files = city_files()
    for name in ("leftImg8bit/train/aachen/aachen_0_2_leftImg8bit.png", "gtFine/val/ulm/ulm_0_1_gtFine_labelIds.png"):
        del files[name]
    layout = cityscapes_layout(list_members(write_folder(tmp_path, files)))
    assert sorted(layout.bad) == [
        ("aachen_0_2", "the mask has no image"),
        ("ulm_0_1", "the validation image has no label"),
    ]


def folder_of(path, images, masks, more=None, **options):
    files = {f"mine/images/{i}.jpg": b"" for i in images} | {f"mine/masks/{i}.png": b"" for i in masks}
    members = list_members(write_folder(path, files | (more or {})))
    return folder_layout(members, classes=TWO, **options)


def subsets(layout):
    return {subset: {r.id for r in layout.rows if r.subset == subset} for subset in ("train", "validation")}


def test_folder_nested_unlabelled_and_unicode(tmp_path):
    name = unicodedata.normalize("NFD", "straße/ü")
    more = {"mine/unlabelled/u/1.PNG": b"", "mine/images/notes.txt": b"", "mine/images/lonely.tif": b""}
    more |= {f"mine/images/{name}.jpg": b"", f"mine/masks/{unicodedata.normalize('NFC', name)}.png": b""}
    layout = folder_of(tmp_path, ["a", "b/c.d"], ["a", "b/c.d"], more, validation="0")
    assert {row.id: row.mask is not None for row in layout.rows} == {
        "a": True, "b/c.d": True, "straße/ü": True, "lonely": False, "u/1": False,
    }  # fmt: skip
    assert {row.subset for row in layout.rows} == {"train"}
    assert layout.splits == {}
    assert layout.notes[1] == "2 images have no mask: they are unlabelled rows"


def test_folder_with_subsets(tmp_path):
    ids = ["train/1", "train/2", "val/1", "test/1"]
    layout = folder_of(tmp_path, ids, ids[:3], {"mine/unlabeled/5.jpg": b"", "mine/images/val/2.jpg": b""})
    assert subsets(layout) == {"train": {"train/1", "train/2", "5"}, "validation": {"val/1"}}
    assert layout.notes[1:] == [
        "1 images below images/test are left out",
        "1 validation images without a mask are left out, such as val/2",
    ]


OWN_SPLITS = {
    "{subset}/images/{n}": ("train", "val", "test"),
    "images/{subset}/{n}": ("Train", "VAL", "Test"),
    "images/{subset}/a/{n}": ("training", "validation", "testing"),
    "photos/{subset}/images/b/{n}": ("Training", "Valid", "test"),
    "images/city/{subset}/{n}": ("train2017", "val2017", "test2017"),
}


@pytest.mark.parametrize("form", OWN_SPLITS)
@pytest.mark.parametrize("masks", ["masks", "labels", "Annotations"])
def test_folders_of_the_user_are_the_subsets(tmp_path, form, masks):
    names = OWN_SPLITS[form]
    # The same numbers in each: an id must still be unique.
    images = [form.format(subset=subset, n=n) for subset in names for n in range(3)]
    files = {f"{name}.jpg": b"" for name in images}
    files |= {f"{name.replace('images', masks)}.png": b"" for name in images}
    files |= {f"{name.replace('images', masks)}.txt": b"" for name in images}
    layout = folder_layout(list_members(write_folder(tmp_path, files)), classes=TWO)
    found = subsets(layout)
    assert [len(found[subset]) for subset in ("train", "validation")] == [3, 3]
    for subset, name in zip(("train", "validation"), names, strict=False):
        assert all(name in key.split("/") and "images" not in key for key in found[subset])
    assert all(row.image.path.stem == row.mask.path.stem and row.subset in (*found,) for row in layout.rows)
    assert "below" in layout.notes[-1] and not layout.bad


def test_folder_above_all_images_is_no_subset(tmp_path):
    names = [f"i{n}" for n in range(20)]
    plain = folder_of(tmp_path / "plain", names, names)
    files = {f"val/{kind}/{n}.png": b"" for kind in ("images", "masks") for n in names}
    layout = folder_layout(list_members(write_folder(tmp_path / "val", files)), classes=TWO)
    assert subsets(layout) == subsets(plain)
    assert layout.notes == plain.notes == [
        "validation: 4 of 20 labelled images drawn, since no folder says which; --validation chooses others"
    ]  # fmt: skip


def test_folder_with_loose_images_beside_subsets(tmp_path):
    ids = ["train/1", "train/2", "val/1", "9", "more/7"]
    layout = folder_of(tmp_path, ids, ids, validation="3")
    assert subsets(layout) == {"train": {"train/1", "train/2", "9", "more/7"}, "validation": {"val/1"}}
    assert layout.notes == [
        "2 images in no folder of a subset are for training, such as 9",
        "--validation 3 is not used: images/val holds validation images",
    ]


def test_folder_with_train_and_test_only(tmp_path):
    ids = [f"train/{n}" for n in range(10)] + ["test/1"]
    layout = folder_of(tmp_path, ids, ids)
    assert [len(found) for found in subsets(layout).values()] == [8, 2]
    assert layout.notes[1].startswith("validation: 2 of 10 labelled images drawn")


def test_folder_subsets_of_no_use(tmp_path):
    with pytest.raises(InputError, match="no image below images/val has a mask"):
        folder_of(tmp_path / "a", ["train/1", "val/1"], ["train/1"])
    with pytest.raises(InputError, match="no image with a mask is left for training"):
        folder_of(tmp_path / "b", ["test/1", "train/1"], ["test/1"])


def test_folder_draws_validation_images(tmp_path):
    names = [f"i{n}" for n in range(20)]

    def drawn(validation, seed=0):
        return subsets(folder_of(tmp_path, [*names, "u"], names, validation=validation, seed=seed))["validation"]

    assert len(drawn("0.2")) == 4
    assert drawn("0.2") == drawn("4")
    assert drawn("4") < drawn("6") < set(names)
    assert drawn("6") != drawn("6", seed=1)
    assert drawn("0") == set()
    (tmp_path / "val.txt").write_text("i3\ni5\n")
    assert drawn(str(tmp_path / "val.txt")) == {"i3", "i5"}
    for wrong in ("20", "1.5", "-1", "some", "nan"):
        with pytest.raises(InputError, match="does not fit 20 labelled"):
            drawn(wrong)
    (tmp_path / "val.txt").write_text("image\tmask\nimages/i3.jpg\tmasks/i3.png\nimages/i5.jpg\tmasks/i5.png\n")
    assert drawn(str(tmp_path / "val.txt")) == {"i3", "i5"}
    (tmp_path / "val.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match="lists all 20 labelled images: none is left to train on"):
        drawn(str(tmp_path / "val.txt"))
    (tmp_path / "val.txt").write_text("x3\nx5\n")
    with pytest.raises(
        InputError, match=r"val\.txt: the data has none of its 2 images; .* 'x3', an id of the data 'i0'"
    ):
        drawn(str(tmp_path / "val.txt"))
    (tmp_path / "val.txt").write_text("i3\nu\n")
    with pytest.raises(InputError, match="1 ids without image or mask: u"):
        drawn(str(tmp_path / "val.txt"))


def test_folder_bad_rows_are_collected(tmp_path):
    more = {"mine/images/b.png": b"", "mine/unlabelled/c.jpg": b"", "mine/masks/d.bmp": b""}
    layout = folder_of(tmp_path, ["a", "b", "c", "d"], ["a", "b", "c", "d", "x"], more, validation="0")
    assert [row.id for row in layout.rows] == ["a"]
    reasons = dict(layout.bad)
    assert set(reasons) == {"b", "c", "d", "x"}
    assert "mine/images/b.jpg and mine/images/b.png" in reasons["b"]
    assert reasons["x"] == "the mask has no image"


def test_folder_says_what_was_looked_for(tmp_path):
    for images, masks, message in (
        ([], ["a"], "no images"),
        (["a"], [], "no masks"),
        (["a"], ["b"], "images/a, masks/b"),
    ):
        with pytest.raises(InputError, match=f"{message}.*looked for files below"):
            folder_of(tmp_path / message[-2:], images, masks)


def test_folder_says_what_is_there_instead(tmp_path):
    heic = {"mine/images/1.HEIC": b"", "mine/images/2.HEIC": b"", "mine/images/3.dng": b""}
    with pytest.raises(InputError, match=r"no images found.*there are 2 \.heic, 1 \.dng, .*save them as JPEG or PNG"):
        folder_of(tmp_path / "heic", [], ["1"], heic)
    polygons = {f"mine/images/{n}.json": b"" for n in range(3)}
    with pytest.raises(InputError, match=r"no masks found.*; 3 \.json files are there.*LabelMe"):
        folder_of(tmp_path / "polygons", ["0", "1", "2"], [], polygons)
    with pytest.raises(InputError, match=r"no masks found.*there are 1 \.npy, such as .*0\.npy: save them as PNG"):
        folder_of(tmp_path / "arrays", ["0"], [], {"mine/masks/0.npy": b""})
    layout = folder_of(tmp_path / "both", ["0", "1", "2"], ["0"], polygons, validation="0")
    assert layout.notes[0] == "3 files are no images and left out: 3 .json, such as mine/images/0.json"


def masks_of(path, arrays):
    return list_members(write_folder(path, {f"{n:02d}.png": grey_png(array) for n, array in enumerate(arrays)}))


def test_classes_are_inferred(tmp_path):
    masks = masks_of(tmp_path, [np.array([[0, 2]], np.uint8), np.array([[1, 255]], np.uint8)])
    assert infer_classes(masks, 1) == ClassList(("class_0", "class_1", "class_2"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([[[0, 255]]], "hold only 0, 255: .*--classes"),
        ([[[0, 128]]], "hold only 0, 128"),
        ([[[0, 1, 2]]] * 20 + [[[0, 200]]], r"hold 0, 1, 2, 200 \(in 1 mask\)"),
        ([[[0]]], "hold only 0"),
        ([np.zeros((2, 2, 3))], "no mask can be read: the mask is RGB"),
    ],
)
def test_classes_that_cannot_be_inferred(tmp_path, arrays, message):
    masks = masks_of(tmp_path, [np.array(array, np.uint8) for array in arrays])
    with pytest.raises(InputError, match=message):
        infer_classes(masks, 2)
