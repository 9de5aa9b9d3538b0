import numpy as np
import pytest

from u2pl_hf.data import demo
from u2pl_hf.data.source.checks import check_labelled
from u2pl_hf.data.sources import load_source
from u2pl_hf.errors import InputError

SPEC = demo.DemoSpec(train=40, validation=4, size=64)


def test_written_once_and_read_like_any_data_set(tmp_path):
    folder = demo.demo_folder(tmp_path, SPEC)
    stamp = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert demo.demo_folder(tmp_path, SPEC) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamp
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]  # nothing half-written beside it
    train, validation = (load_source(str(folder), subset) for subset in ("train", "validation"))
    assert (len(train.ids), len(validation.ids)) == (40, 4) and train.class_names == list(demo.CLASS_NAMES)
    check_labelled(train, range(40), len(demo.CLASS_NAMES), what="training")
    image, label = demo.render(SPEC, "train", 7)
    assert (train.read_image(7) == image).all() and (train.read_label(7) == label).all()


def test_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set U2PL_CACHE to a folder that you can write"):
        demo.demo_folder(tmp_path / "file", SPEC)


def test_classes_are_imbalanced_and_all_there():
    labels = [demo.render(SPEC, "train", i)[1] for i in range(150)]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)
    assert (counts[:7] > 0).all() and counts[255] > 0 and counts[7:255].sum() == 0
    assert counts[0] == counts.max() and counts[1] > 1.5 * counts[6]


def test_images_depend_on_seed_subset_and_number():
    first = demo.render(SPEC, "train", 0)[0]
    assert (demo.render(SPEC, "train", 0)[0] == first).all()
    for other in (demo.render(SPEC, "train", 1), demo.render(SPEC, "validation", 0),
                  demo.render(demo.DemoSpec(seed=1, size=64), "train", 0)):  # fmt: skip
        assert (other[0] != first).any()
