"""Annotation tools' files through the programs: u2pl prepare annotations, --map, u2pl export-labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.prepared import encoded, grey_png, picture, write_folder
from tests.in_process import run_here
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation, U2PLImageProcessor
from u2pl_hf.data.annotations.writing import WRITERS
from u2pl_hf.data.sources import load_source


def prepared(*arguments, code=0):
    """The JSON line of a preparation, or its error line."""
    done = run_here("prepare_dataset.py", *arguments, "--workers", 1)
    assert done.returncode == code, done.stderr
    if code:
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return line
    return json.loads(done.stdout.splitlines()[-1])


def labels_of(folder: Path) -> dict[str, np.ndarray | None]:
    found = {}
    for subset in ("train", "validation"):
        if any((folder / "data").glob(f"{subset}-*")):
            source = load_source(str(folder), subset)
            has_label = source.rows.has_label()
            found |= {key: source.read_label(n) if has_label[n] else None for n, key in enumerate(source.ids)}
    return found


def coco(*objects, images=("a.jpg", "b.jpg", "c.jpg"), size=(20, 30), names=("road", "lane", "dog")):
    """Objects are (image's number, category, box)."""

    def square(left, top, right, bottom):
        return [[left, top, right, top, right, bottom, left, bottom]]

    listed = [{"id": n, "file_name": name, "width": size[1], "height": size[0]} for n, name in enumerate(images)]
    items = [
        {"id": n, "image_id": i, "category_id": c, "segmentation": square(*b)} for n, (i, c, b) in enumerate(objects)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    return json.dumps({"images": listed, "annotations": items, "categories": categories}).encode()


def photographs(folder, names=("a", "b", "c"), size=(20, 30)):
    return write_folder(folder, {f"{name}.jpg": picture(*size[::-1], kind="jpeg") for name in names})


OBJECTS = [(0, 0, (0, 0, 30, 20)), (0, 1, (5, 5, 10, 10)), (1, 2, (0, 0, 15, 20)), (1, 0, (15, 0, 30, 20))]


def test_coco_of_own_photographs(tmp_path):
    photographs(tmp_path / "photos", ["a", "b", "c", "d"])
    write_folder(tmp_path, {"export.json": coco(*OBJECTS)})
    args = (
        "annotations",
        "--root",
        tmp_path / "photos",
        "--annotations",
        tmp_path / "export.json",
        "--validation",
        "1",
    )
    result = prepared(*args, "--output_dir", tmp_path / "out")
    assert result["classes"] == ["road", "lane", "dog"]
    assert any("pixels of no object are ignored (255)" in note for note in result["notes"])
    assert any(
        "1 images are listed without an object, such as c: they are unlabelled rows" in n for n in result["notes"]
    )
    found = labels_of(tmp_path / "out")
    assert found["c"] is None and found["d"] is None
    expected = np.zeros((20, 30))
    expected[5:10, 5:10] = 1
    assert np.array_equal(found["a"], expected)
    assert np.array_equal(found["b"], np.where(np.arange(30) < 15, 2, 0) * np.ones((20, 1)))
    # As one class and background, in which c is a picture of nothing; a's whole is ignored but for the lane.
    more = ("--background", "background", "--empty", "background", "--map", "road=ignore", "dog=thing", "lane=thing")
    result = prepared(*args, *more, "--output_dir", tmp_path / "two")
    assert result["classes"] == ["background", "thing"]
    found = labels_of(tmp_path / "two")
    assert (found["c"] == 0).all() and found["d"] is None
    assert np.array_equal(found["a"], np.where(expected, 1, 255))
    assert (tmp_path / "two" / "class_names.txt").read_text().split() == ["background", "thing"]


def test_what_does_not_fit_is_told(tmp_path):
    photographs(tmp_path / "photos")
    args = ("annotations", "--root", tmp_path / "photos", "--output_dir", tmp_path / "out", "--annotations")
    export = tmp_path / "export.json"
    cases = [
        (coco(*OBJECTS, size=(40, 30)), (), "the image is 30x20, but"),
        (coco(*OBJECTS, size=(30, 20)), (), "as it is stored, before its EXIF orientation"),
        (coco(*OBJECTS, images=("a.jpg", "b.jpg", "x.jpg")), (), "x.jpg: "),
        (coco(OBJECTS[0], names=["road"]), (), "the annotations name road alone, two or more are needed"),
        (coco(*OBJECTS), ("--background", "ignore", "--empty", "background"), "pass --background NAME"),
        (coco(*OBJECTS), ("--map", "raod=x"), "(near: road)"),
        (coco(*OBJECTS), ("--classes", tmp_path / "classes.txt"), "--classes does not name dog"),
        (coco(), (), "no image has an object"),
        (coco(*OBJECTS), ("--format", "cvat"), "no .xml file of cvat is there"),
    ]
    (tmp_path / "classes.txt").write_text("road\nlane\n")
    for content, more, told in cases:
        export.write_bytes(content)
        assert told in prepared(*args, export, *more, code=2), told
        assert not (tmp_path / "out").exists()
    assert "no such file" in prepared(*args, tmp_path / "none.json", code=2)


def test_a_photograph_turned_by_exif_is_annotated_upright(tmp_path):
    """As CVAT, LabelMe and Label Studio show it: the file is 30x20, and the tool's size 20x30."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(np.zeros((20, 30, 3), np.uint8)), "jpeg", exif=exif)
    write_folder(tmp_path / "photos", {"a.jpg": turned, "b.jpg": turned})
    objects = [(0, 0, (0, 0, 20, 3)), (1, 1, (0, 0, 9, 9))]
    export = tmp_path / "e.json"
    export.write_bytes(coco(*objects, images=["a.jpg", "b.jpg"], size=(30, 20)))
    args = ("annotations", "--root", tmp_path / "photos", "--annotations", export, "--output_dir", tmp_path / "out")
    prepared(*args, "--validation", "0")
    assert labels_of(tmp_path / "out")["a"].shape == (30, 20)
    assert (labels_of(tmp_path / "out")["a"][:3] == 0).all()


def test_subsets_by_folders_and_names_in_several_of_them(tmp_path):
    names = ["images/train/ä ö", "images/train/b", "images/val/b"]
    photographs(tmp_path / "photos", names)
    listed = ["train/a\u0308 o\u0308.jpg", "train/b.jpg", "C:\\x\\val\\b.jpg"]
    content = coco(*[(n, c, (0, 10 * c, 30, 10 + 10 * c)) for n in range(3) for c in (0, 1)], images=listed)
    write_folder(tmp_path, {"e.json": content})
    args = ("--root", tmp_path / "photos", "--annotations", tmp_path / "e.json", "--output_dir", tmp_path / "out")
    result = prepared("annotations", *args)
    assert {name: s["labelled"] for name, s in result["subsets"].items()} == {"train": 2, "validation": 1}
    assert labels_of(tmp_path / "out").keys() == {"train/ä ö", "train/b", "val/b"}


def test_classes_of_a_folder_are_mapped(tmp_path):
    mask = np.array([[0, 1, 2, 255]] * 3, np.uint8)
    files = {f"images/{n}.png": picture(4, 3) for n in "ab"} | {f"masks/{n}.png": grey_png(mask) for n in "ab"}
    write_folder(tmp_path / "own", files)
    (tmp_path / "classes.txt").write_text("road,128,64,128\nlane,1,2,3\ndog,4,5,6\n")
    args = ("folder", "--root", tmp_path / "own", "--classes", tmp_path / "classes.txt", "--validation", 1)
    result = prepared(*args, "--map", "lane=road", "--output_dir", tmp_path / "out")
    assert result["classes"] == ["road", "dog"]
    assert labels_of(tmp_path / "out")["a"].tolist() == [[0, 0, 1, 255]] * 3
    assert (tmp_path / "out" / "class_names.txt").read_text() == '"road",128,64,128\ndog,4,5,6\n'.replace('"', "")
    assert "class became" not in str(result) and any("road (road, lane)" in note for note in result["notes"])
    assert "dog is all" in prepared(*args, "--keep", "dog", "--output_dir", tmp_path / "one", code=2)


@pytest.mark.parametrize("missing, suffix", [("pycocotools", ".json"), ("defusedxml", ".xml")])
def test_without_the_extra_a_line_says_so(tmp_path, monkeypatch, missing, suffix):
    photographs(tmp_path / "photos")
    write_folder(tmp_path, {f"e{suffix}": coco(*OBJECTS)})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    args = ("--root", tmp_path / "photos", "--annotations", tmp_path / f"e{suffix}", "--output_dir", tmp_path / "out")
    told = prepared("annotations", *args, code=2)
    assert f"needs {missing}: pip install 'u2pl_hf[annotations]'" in told


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A prepared data set with a background, ignored pixels, and an unlabelled photograph."""
    folder, noise = tmp_path_factory.mktemp("own"), np.random.default_rng(3)
    masks = {
        n: np.kron(noise.choice([0, 1, 2, 255], (5, 6)), np.ones((4, 4))).astype(np.uint8) for n in ("a", "b ä", "x/c")
    }
    photographs(folder / "photos" / "images", [*masks, "d"], (20, 24))
    write_folder(folder / "photos", {f"masks/{n}.png": grey_png(mask) for n, mask in masks.items()})
    (folder / "classes.txt").write_text("background,0,0,0\nStraße und Weg,9,9,9\ncar,0,0,255\n")
    prepared("folder", "--root", folder / "photos", "--classes", folder / "classes.txt", "--validation", 0,
             "--output_dir", folder / "data")  # fmt: skip
    return folder, masks


@pytest.mark.parametrize("kind", WRITERS)
def test_a_data_set_goes_out_and_comes_back(own, tmp_path, kind):
    folder, masks = own
    exact = () if kind == "coco" else ("--tolerance", 0)
    args = (folder / "data", "--format", kind, *exact, "--output_dir", tmp_path / "out")
    facts = result_of(run_here("export_labels.py", *args, "--with_images"))
    assert facts["images"] == 3 and facts["uncertain"] == 0
    # The images of the tool, its file, and the class list that lies beside it.
    back = ("annotations", "--root", tmp_path / "out", "--annotations", tmp_path / "out", "--validation", 0)
    result = prepared(*back, "--output_dir", tmp_path / "back")
    assert result["classes"] == ["background", "Straße und Weg", "car"]
    found = labels_of(tmp_path / "back")
    assert found.keys() == masks.keys() and all(np.array_equal(found[n], masks[n]) for n in masks)
    assert (tmp_path / "back" / "class_names.txt").read_text() == (folder / "classes.txt").read_text()
    if kind == "labelme":
        shapes = json.loads((tmp_path / "out" / "x" / "c.json").read_text())
        assert (tmp_path / "out" / "x" / shapes["imagePath"]).resolve() == tmp_path / "out" / "images" / "x" / "c.jpg"


def test_some_images_are_exported_and_only_own_folders_replaced(own, tmp_path):
    folder, _ = own
    (tmp_path / "ids.txt").write_text("b ä\n")
    args = [folder / "data", "--format", "labelstudio", "--ids", tmp_path / "ids.txt", "--output_dir", tmp_path / "out"]
    for _ in range(2):
        assert result_of(run_here("export_labels.py", *args))["images"] == 1
    config = (tmp_path / "out" / "labeling_config.xml").read_text()
    assert '<Label value="Straße und Weg" background="#090909" />' in config and "PolygonLabels" in config
    (tmp_path / "out" / "u2pl_export.json").unlink()
    cases = [(args, "was not written by this program"), ([*args, "--subset", "test"], "was not written")]
    (tmp_path / "no.txt").write_text("d\nb ä\n")
    cases.append(
        (
            [*args[:4], tmp_path / "no.txt", "--output_dir", tmp_path / "new"],
            "names 1 images without a label, such as d",
        )
    )
    for words, told in cases:
        done = run_here("export_labels.py", *words)
        assert done.returncode == 2 and told in done.stderr
    assert not (tmp_path / "new").exists()


def test_predictions_are_exported_for_a_tool(tmp_path):
    """A tool reads what the masks hold, regions marked by their mean confidence; images done before are in it too."""
    torch.manual_seed(0)
    names = dict(enumerate(["wall", "tree", "car"]))
    small = {"base_width": 8, "head_channels": 8, "representation_channels": 8}
    config = U2PLConfig(backbone="resnet18", id2label=names, label2id={v: k for k, v in names.items()}, **small)
    U2PLForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    U2PLImageProcessor().save_pretrained(tmp_path / "model")
    photographs(tmp_path / "photos", ["a", "in/b"], (40, 48))
    args = [tmp_path / "model", tmp_path / "photos", "--recursive", "--output_dir", tmp_path / "out", "--device", "cpu"]
    coco = ("--export", "coco", "--uncertain_below", 1)
    first = result_of(run_here("predict.py", *args, *coco))["export"]
    assert first["images"] == 2 and first["uncertain"] == first["regions"] > 1
    again = result_of(run_here("predict.py", *args, "--skip_existing", *coco[:2], "--uncertain_below", 0))
    assert again["skipped"] == 2 and again["export"]["images"] == 2 and again["export"]["uncertain"] == 0
    back = ("annotations", "--root", tmp_path / "photos", "--annotations", tmp_path / "out" / "export_coco")
    prepared(*back, "--validation", 0, "--output_dir", tmp_path / "back")
    for name, labels in labels_of(tmp_path / "back").items():
        assert np.array_equal(labels, np.array(Image.open(tmp_path / "out" / f"{name}_mask.png")))
    run_here("predict.py", *args, "--export", "labelme")
    path = tmp_path / "out" / "export_labelme" / "in" / "b.json"
    assert (path.parent / json.loads(path.read_text())["imagePath"]).resolve() == tmp_path / "photos" / "in" / "b.jpg"
    (tmp_path / "out" / "export_cvat").mkdir()
    (tmp_path / "out" / "export_cvat" / "mine.xml").touch()
    done = run_here("predict.py", *args, "--export", "cvat")
    assert done.returncode == 2 and "was not written by this program" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--uncertain_below", "0.5"], "--uncertain_below says nothing without --export"),
        (["--tolerance", "0"], "--tolerance says nothing without --export"),
        (["--shapes", "masks"], "--shapes says nothing without --export"),
        (["--export", "coco", "--tolerance", "2"], "--tolerance is about polygons: pass --shapes polygons"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, words, told):
    done = run_here("predict.py", "model", "photo.jpg", "--output_dir", tmp_path / "out", *words)
    assert done.returncode == 2 and told in done.stderr and not (tmp_path / "out").exists()
