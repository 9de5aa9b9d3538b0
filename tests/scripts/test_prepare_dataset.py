"""The real script, run in this process, as starting another one takes seconds."""

import io
import json
import shutil
from collections import Counter

import datasets
import numpy as np
import pytest
from scipy.io import savemat

from tests.data.prepared import NOISE, grey_png, ids, palette_png, picture, write_folder, write_tar, write_zip
from tests.in_process import ROOT, run_here
from u2pl_hf.data.sources import load_source

SCRIPT = ROOT / "training_scripts" / "prepare_dataset.py"


@pytest.fixture
def run():
    """Run the script here: (exit code, last line of stdout, stderr)."""

    def call(*arguments):
        done = run_here("prepare_dataset.py", *arguments)
        return done.returncode, done.stdout.splitlines()[-1:], done.stderr

    return call


@pytest.fixture
def refused(run):
    """The one error line of a call that must fail."""

    def call(*arguments):
        code, _, errors = run(*arguments)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (2, 1), errors
        return lines[0]

    return call


def sbd_mat(labels):
    out = io.BytesIO()
    savemat(out, {"GTcls": {"Segmentation": labels, "Boundaries": [0]}})
    return out.getvalue()


def voc_inputs(folder, count=48, size=160):
    """The official tar with a few fine labels, and SBD's benchmark.tgz; the true labels by id."""
    truth = {f"2008_{n:06d}": NOISE.integers(0, 21, (size, size)).astype(np.uint8) for n in range(count)}
    names = sorted(truth)
    fine, validation = names[:10], names[10:14]
    for name in fine + validation:
        truth[name][:, :3] = 255
    official = {f"VOCdevkit/VOC2012/JPEGImages/{n}.jpg": picture(size, size, kind="jpeg") for n in names}
    official |= {f"VOCdevkit/VOC2012/SegmentationClass/{n}.png": palette_png(truth[n]) for n in fine + validation}
    for subset, listed in (("train", fine), ("val", validation)):
        official[f"VOCdevkit/VOC2012/ImageSets/Segmentation/{subset}.txt"] = "\n".join(listed).encode()
    sbd = {f"benchmark_RELEASE/dataset/cls/{n}.mat": sbd_mat(truth[n] % 21) for n in names}
    tar, tgz = write_tar(folder / "voc.tar", official), write_tar(folder / "benchmark.tgz", sbd, "w:gz")
    return [tar, tgz], official, truth, validation


def test_voc_with_the_labels_of_sbd(tmp_path, run):
    archives, official, truth, validation = voc_inputs(tmp_path)
    out = tmp_path / "out"
    code, lines, _ = run("voc", "--archive", *archives, "--output_dir", out, "--workers", 2)
    assert code == 0
    result, loaded = json.loads(lines[0]), datasets.load_dataset(str(out))
    assert set(loaded["train"]["id"]) == truth.keys() - set(validation)
    assert loaded["validation"]["id"] == validation
    for subset, rows in loaded.items():
        direct = Counter(int(v) for name in rows["id"] for v in truth[name].ravel())
        assert list(result["subsets"][subset]["pixels"].values()) == [direct[i] for i in range(21)]
        assert result["subsets"][subset]["ignored_pixels"] == direct[255]
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            assert row["image"]["bytes"] == official[f"VOCdevkit/VOC2012/JPEGImages/{row['id']}.jpg"]
            assert np.array_equal(np.array(row["label"]), truth[row["id"]])
    assert (out / "class_names.txt").read_text().splitlines()[15] == "person,192,128,128"
    assert load_source(str(out), "validation").class_names[14:16] == ["motorbike", "person"]


def city_inputs(folder):
    image, label = "leftImg8bit/train/ulm/ulm_000000_000019", "gtFine/train/ulm/ulm_000000_000019"
    labels = ids(values=(0, 7, 26))
    left = write_zip(folder / "left.zip", {f"{image}_leftImg8bit.png": picture()})
    return [left, write_zip(folder / "right.zip", {f"{label}_gtFine_labelIds.png": grey_png(labels)})], labels


def test_cityscapes_is_prepared_but_not_pushed(tmp_path, run, refused):
    archives, labels = city_inputs(tmp_path)
    arguments = ["cityscapes", "--archive", *archives, "--output_dir", tmp_path / "out", "--workers", 1]
    assert "forbids redistribution" in refused(*arguments, "--push", "me/city")
    assert not (tmp_path / "out").exists()
    result = json.loads(run(*arguments)[1][0])
    pixels = result["subsets"]["train"]["pixels"]
    assert (pixels["road"], pixels["car"]) == ((labels == 7).sum(), (labels == 26).sum())
    assert result["subsets"]["train"]["ignored_pixels"] == (labels == 0).sum()
    assert "forbid redistribution" in (tmp_path / "out" / "README.md").read_text()
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["id"] == ["ulm_000000_000019"]


def test_ade20k(tmp_path, run):
    info = "".join(f"{n}\t0.1\t9\t1\tthing {n}, other\n" for n in range(1, 151)).encode()
    name, labels = "training/ADE_train_00000001", ids(values=(0, 1, 150))
    files = {"images/" + name + ".jpg": picture(kind="jpeg"), "annotations/" + name + ".png": grey_png(labels)}
    archive = write_zip(
        tmp_path / "ADEChallengeData2016.zip", {f"A/{n}": d for n, d in files.items()} | {"A/objectInfo150.txt": info}
    )
    result = json.loads(run("ade20k", "--archive", archive, "--output_dir", tmp_path / "out", "--workers", 1)[1][0])
    pixels = result["subsets"]["train"]["pixels"]
    assert [pixels[f"thing {n}"] for n in (1, 2, 150)] == [(labels == n).sum() for n in (1, 2, 150)]
    assert result["subsets"]["train"]["ignored_pixels"] == (labels == 0).sum() and result["dataset"] == "ade20k"


def test_coco_with_masks_from_elsewhere(tmp_path, run, refused):
    labels = ids(values=(0, 15, 255))
    images = write_zip(tmp_path / "train2017.zip", {"train2017/000000000009.jpg": picture(kind="jpeg")})
    masks = write_folder(tmp_path / "drawn", {"000000000009.png": grey_png(labels)})
    arguments = ["coco", "--archive", images, "--output_dir", tmp_path / "out", "--workers", 1]
    assert "no labels found: looked for masks/*.png" in refused(*arguments)
    assert "no such file" in refused(*arguments, "--masks", tmp_path / "nowhere")
    result = json.loads(run(*arguments, "--masks", masks)[1][0])
    assert result["subsets"]["train"]["pixels"]["bird"] == (labels == 15).sum()
    assert datasets.load_dataset(str(tmp_path / "out"))["train"]["id"] == ["000000000009"]


def test_push_uploads_the_finished_folder(tmp_path, run, refused, hub, monkeypatch):
    archives, _ = city_inputs(tmp_path)
    out = tmp_path / "out"
    arguments = ["cityscapes", "--archive", *archives, "--workers", 1, "--force_push", "--private", "--output_dir"]
    assert "USER/NAME" in refused(*arguments, out, "--push", "city")
    assert "--private says nothing without --push" in refused(*arguments, out)
    result = json.loads(run(*arguments, out, "--push", "user/city")[1][0])
    repo = hub.repos["dataset", "user/city"]
    assert repo.private and result["pushed"].endswith(repo.branches["main"])
    files = repo.commits[repo.branches["main"]]
    assert files.keys() == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in refused(*arguments, tmp_path / "two", "--push", "user/city")


def test_folder_with_a_colour_table(tmp_path, run, refused):
    wire = ids(values=(0, 255))
    files = {f"images/{n}.png": picture() for n in range(5)} | {f"masks/{n}.png": grey_png(wire) for n in range(5)}
    write_folder(tmp_path / "in", files)
    arguments = ["folder", "--root", tmp_path / "in", "--output_dir", tmp_path / "out", "--workers", 1]
    assert "--classes FILE" in refused(*arguments)
    (tmp_path / "classes.txt").write_text("background,0\nwire,255\n")
    result = json.loads(run(*arguments, "--classes", tmp_path / "classes.txt", "--validation", "2")[1][0])
    shutil.copy(tmp_path / "classes.txt", tmp_path / "in")
    again = json.loads(run(*arguments[:4], tmp_path / "again", *arguments[5:], "--validation", "2")[1][0])
    assert again["classes"] == result["classes"] == ["background", "wire"] and again["subsets"] == result["subsets"]
    assert {name: subset["rows"] for name, subset in result["subsets"].items()} == {"train": 3, "validation": 2}
    assert result["subsets"]["validation"]["pixels"]["wire"] == 2 * (wire == 255).sum()
    assert (tmp_path / "out" / "class_names.txt").read_text() == "background\nwire\n"
    drawn = "validation: 2 of 5 labelled images drawn, since no folder says which"
    card = (tmp_path / "out" / "README.md").read_text()
    assert result["notes"][0].startswith(drawn) and drawn in card
    assert "--dataset DIR --split all --unlabelled_dataset MORE" in card and "`--split 1/8`" in card


def test_bad_rows_end_with_one_error(tmp_path, run, refused):
    files = {f"images/ü{n}.png": picture() for n in range(4)} | {f"masks/ü{n}.png": grey_png(ids()) for n in range(4)}
    write_folder(tmp_path / "in", files | {"images/bad.jpg": b"no", "masks/bad.png": grey_png(ids())})
    arguments = ["folder", "--root", tmp_path / "in", "--output_dir", tmp_path / "out", "--workers", 1]
    assert "1 of 5 rows cannot be used" in refused(*arguments)
    assert not (tmp_path / "out").exists()
    result = json.loads(run(*arguments, "--skip_bad")[1][0])
    assert [item["id"] for item in result["skipped"]] == ["bad"]


def test_refusals(tmp_path, refused):
    out = ["--output_dir", tmp_path / "out"]
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "--archive FILE ... or --root DIR" in refused("voc", *out)
    assert "no such file" in refused("voc", "--archive", tmp_path / "x.tar", *out)
    assert "is no archive: looked for" in refused("voc", "--archive", tmp_path / "text", *out)
    assert "is not a folder" in refused("voc", "--root", tmp_path / "text", *out)
    assert "looked for JPEGImages" in refused("voc", "--root", tmp_path / "empty", *out)
    assert "looked for leftImg8bit" in refused("cityscapes", "--root", tmp_path / "empty", *out)
    assert "looked for images/{training,validation}" in refused("ade20k", "--root", tmp_path / "empty", *out)
    assert "looked for train2017/*.jpg" in refused("coco", "--root", tmp_path / "empty", *out)
    assert "below images/ and masks/" in refused("folder", "--root", tmp_path / "empty", *out)
    assert "not empty" in refused("voc", "--root", tmp_path / "empty", "--output_dir", tmp_path / "full")
    assert "--shards is 0: it must be at least 1" in refused("voc", "--root", tmp_path / "empty", *out, "--shards", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "text"]


@pytest.mark.parametrize("layout", [[], ["voc"], ["cityscapes"], ["ade20k"], ["coco"], ["folder"]])
def test_help_shows_an_example(layout):
    told = run_here("prepare_dataset.py", *layout, "--help").stdout
    assert "python training_scripts/prepare_dataset.py " + " ".join(layout) in told
