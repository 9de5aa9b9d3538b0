"""u2pl inspect: planted faults are all told, with training's own words for those that training refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.rows import encode, make_table, write_parquet
from u2pl_hf.commands import inspect
from u2pl_hf.data import overview
from u2pl_hf.data.demo import DemoSpec, render
from u2pl_hf.errors import InputError
from u2pl_hf.training.inputs import load_training_data
from u2pl_hf.training.recipe.command import recipe_arguments

SIDE = 96
PHOTOS = [render(DemoSpec(size=SIDE), "train", number)[0] for number in range(9)]


def mask(*bands: int) -> np.ndarray:
    """Bands of equal height, a class each."""
    return np.repeat(np.array(bands, np.uint8), SIDE // len(bands))[:, None].repeat(SIDE, axis=1)


def write(folder: Path, train: list[tuple[bytes, np.ndarray]], validation: list[tuple[bytes, np.ndarray]]) -> Path:
    for subset, rows in (("train", train), ("validation", validation)):
        images, masks = zip(*rows, strict=True)
        ids = [f"{subset}_{number}" for number in range(len(rows))]
        write_parquet(folder, make_table(list(images), list(map(encode, masks)), ids), subset=subset)
    (folder / "class_names.txt").write_text("road\nsky\ncrack\nlamp\n")
    return folder


GOOD = [(encode(PHOTOS[0]), mask(0, 1)), (encode(PHOTOS[1]), mask(0, 1, 2)), (encode(PHOTOS[2]), mask(255)),
        (encode(PHOTOS[3]), mask(0, 0, 0, 1))]  # fmt: skip
BROKEN = [(encode(PHOTOS[4])[:2000], mask(0, 1)), (encode(PHOTOS[5]), mask(0, 1)[:50])]
SCORED = [(encode(PHOTOS[6]), mask(0, 1, 3)), (encode(PHOTOS[7]), mask(0, 0, 255))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Data with faults, data without the broken files, and unlabelled photographs: a leak, a broken one, another."""
    root = tmp_path_factory.mktemp("photos")
    write(root / "faulty", GOOD + BROKEN, [*SCORED, BROKEN[1]])
    write(root / "good", GOOD, SCORED)
    write(root / "lost", BROKEN, SCORED)
    (root / "more").mkdir()
    side = round(0.9 * SIDE)
    Image.fromarray(PHOTOS[6]).resize((side, side)).save(root / "more" / "leak.jpg", quality=60)
    Image.fromarray(PHOTOS[8]).save(root / "more" / "other.jpg")
    (root / "more" / "torn.jpg").write_bytes((root / "more" / "other.jpg").read_bytes()[:900])
    return root


def inspected(capsys, *options) -> tuple[dict, str]:
    inspect.main(list(map(str, options)))
    out, told = capsys.readouterr()
    return json.loads(out), told


def test_planted_faults_are_told(photos, capsys):
    facts, told = inspected(capsys, photos / "faulty", "--unlabelled_dataset", photos / "more")
    assert [facts["subsets"][name]["images"] for name in inspect.SUBSETS] == [4, 2, 2]
    labelled, unlabelled, validation = (facts["faults"][name] for name in inspect.SUBSETS)
    assert len(labelled) == 2 and "train_4 cannot be read" in labelled[0] and "train_5 differ in size" in labelled[1]
    assert len(unlabelled) == 1 and "image torn" in unlabelled[0] and len(validation) == 1
    for line in (*labelled, *unlabelled, *validation):
        assert f": {line}\n" in told
    assert facts["alike"] == {"labelled-validation": 0, "unlabelled-validation": 1, "labelled-labelled": 0}
    (pair,) = facts["alike_pairs"]
    assert (pair["subsets"], pair["images"]) == (["unlabelled", "validation"], ["leak", "validation_0"])
    assert pair["distance"] <= 4 and "unlabelled leak looks like validation validation_0 (" in told
    for fault, name in (
        ("in validation, but in no labelled image", "lamp"),
        ("in a single labelled image", "crack"),
        ("labelled masks are ignored (255) altogether", "train_2"),
        ("1 pairs of unlabelled and validation images look alike", ""),
        ("labelled images have no side of half a crop", ""),
    ):
        (line,) = [line for line in facts["warnings"] if fault in line]
        assert name in line and f"warning: {line}\n" in told


def test_training_refuses_what_is_told(photos, capsys):
    """And nothing else: without the broken files it starts."""
    facts, _ = inspected(capsys, photos / "faulty")
    run = {"method": "suponly", "split": "all", "crop_size": 65}
    with pytest.raises(InputError) as error:
        load_training_data(recipe_arguments(None, run | {"dataset": str(photos / "faulty")}))
    first, second = facts["faults"]["labelled"]
    assert str(error.value) == f"{first} (and 1 more training images have problems)" and second
    good, _ = inspected(capsys, photos / "good")
    assert good["faults"] == {"labelled": [], "unlabelled": [], "validation": []} and good["alike_pairs"] == []
    assert good["classes"] == facts["classes"]
    load_training_data(recipe_arguments(None, run | {"dataset": str(photos / "good")}))


def test_counts_are_those_of_a_loop(photos, capsys):
    facts, told = inspected(capsys, photos / "good")
    for subset, rows in (("labelled", GOOD), ("validation", SCORED)):
        pixels = [sum(int((ids == class_id).sum()) for _, ids in rows) for class_id in range(4)]
        for class_id, row in enumerate(facts["classes"]):
            assert row[f"{subset}_images"] == sum(bool((ids == class_id).any()) for _, ids in rows)
            assert row[f"{subset}_pixels"] == pixels[class_id]
            assert row[f"{subset}_share"] == pytest.approx(pixels[class_id] / sum(pixels))
        ignored = sum(int((ids == 255).sum()) for _, ids in rows) / (len(rows) * SIDE * SIDE)
        assert facts["subsets"][subset]["ignored"] == pytest.approx(ignored) and f" {ignored:.2%} " in told
        assert facts["subsets"][subset]["largest"] == [SIDE, SIDE]
    assert facts["subsets"]["unlabelled"] == dict.fromkeys(("ignored", "smallest", "median", "largest")) | {"images": 0}


@pytest.mark.parametrize(("light", "told"), [(1.0, None), (0.4, "darker"), (2.2, "brighter")])
def test_another_light_of_the_unlabelled_images_is_told(tmp_path, capsys, light, told):
    data = write(tmp_path / "data", [(encode(photo), mask(0, 1)) for photo in PHOTOS[:5]], SCORED)
    (tmp_path / "more").mkdir()
    for number, photo in enumerate(PHOTOS[5:]):
        Image.fromarray(np.clip(light * photo, 0, 255).astype(np.uint8)).save(tmp_path / "more" / f"{number}.png")
    facts, _ = inspected(capsys, data, "--unlabelled_dataset", tmp_path / "more")
    lines = [line for line in facts["warnings"] if "of the pairs" in line]
    assert [f"{told} than labelled ones in 100%" in line for line in lines] == ([True] if told else [])
    # Three labelled images could be all dark by chance.
    few = write(tmp_path / "few", [(encode(photo), mask(0, 1)) for photo in PHOTOS[:3]], SCORED)
    facts, _ = inspected(capsys, few, "--unlabelled_dataset", tmp_path / "more")
    assert not any("of the pairs" in line for line in facts["warnings"])


def test_the_share_of_brighter_images_is_that_of_a_loop():
    draw = np.random.default_rng(0)
    labelled, unlabelled = (draw.integers(0, 9, size).astype(float) for size in (7, 11))
    pairs = [(u > l) + 0.5 * (u == l) for u in unlabelled for l in labelled]
    assert overview.brighter_share(labelled, unlabelled) == pytest.approx(sum(pairs) / 77)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "told"),
    [
        ([1, 2, 3, 4], [5] * 17 + [0] * 3, None),
        ([1, 2, 3, 4], [5] * 18 + [0] * 2, "brighter than labelled ones in 90%"),
        ([1, 2, 3, 4], [5] * 2 + [0] * 18, "darker than labelled ones in 90%"),
        ([1, 2, 3], [5] * 20, None),
        ([1, 2, 3, 4], [], None),
    ],
)
def test_from_which_share_on_it_is_another_light(labelled, unlabelled, told):
    lines = overview.light_warnings(np.array(labelled, float), np.array(unlabelled, float))
    assert [told in line for line in lines] == ([True] if told else [])


def test_the_contact_sheet_shows_images_under_their_masks(photos, capsys, tmp_path):
    facts, _ = inspected(capsys, photos / "faulty", "--output_dir", tmp_path / "looks")
    assert facts["sheet"] == str(tmp_path / "looks" / "inspect.png")
    assert [path.name for path in (tmp_path / "looks").iterdir()] == ["inspect.png"]
    with Image.open(facts["sheet"]) as sheet:
        assert sheet.width == 4 * (240 + 6) and sheet.height > 240
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    top, cell = 22, pixels[22:262, 6:246]  # the first image: half road, black and so bare, half sky, dark red
    image = np.asarray(Image.fromarray(PHOTOS[0]).resize((240, 240), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(cell[:120] - image[:120]).max() == 0 and (pixels[:top] == 255).any()
    assert np.abs(cell[120:] - np.add(image[120:], (128, 0, 0)) / 2).max() <= 1


def test_a_split_leaves_the_rest_unlabelled_streamed_or_not(tiny_data, capsys):
    facts, _ = inspected(capsys, tiny_data, "--split", "8")
    assert [facts["subsets"][name]["images"] for name in inspect.SUBSETS] == [8, 16, 5] and facts["sheet"] is None
    streamed, _ = inspected(capsys, tiny_data, "--split", "8", "--streaming")
    assert streamed == facts


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["nowhere"], "data set nowhere"),
        (["good", "--unlabelled_dataset", "nowhere"], "data set nowhere"),
        (["good", "--split", "none.txt"], "none.txt"),
        (["good", "--num_labels", "3"], "--num_labels 3 does not fit the 4 class names"),
        ([], "required: dataset"),
    ],
)
def test_bad_data_are_told_in_one_line(photos, monkeypatch, capsys, options, told):
    monkeypatch.chdir(photos)
    with pytest.raises(SystemExit) as ended:
        inspect.main(options)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and told in err and err.count("\n") == 1


def test_where_nothing_is_left_all_faults_are_told(photos, capsys):
    with pytest.raises(SystemExit) as ended:
        inspect.main([str(photos / "lost")])
    out, err = capsys.readouterr()
    *faults, error = err.splitlines()
    assert ended.value.code == 2 and not out and error.startswith("error: image train_0 cannot be read")
    assert [line.split(":")[0] for line in faults] == ["labelled, training does not start"] * 2
