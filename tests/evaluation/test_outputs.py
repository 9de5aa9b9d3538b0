import numpy as np
import pytest
from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.outputs import check_replaceable, check_writable, is_of, read_origin, save_png

MASK = np.arange(12, dtype=np.uint8).reshape(3, 4)
ORIGIN = {"model": "runs/a", "digest": "a1", "options": {"mode": "slide", "scales": [1.0]}}


def test_picture_is_whole_and_alone(tmp_path):
    save_png(tmp_path / "deep" / "mask.png", MASK, ORIGIN)
    assert np.array_equal(np.array(Image.open(tmp_path / "deep" / "mask.png")), MASK)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mask.png"]


def test_a_mask_with_a_palette_holds_its_ids_in_8_bits(tmp_path):
    save_png(tmp_path / "mask.png", MASK, ORIGIN, [[0, 0, 0], [9, 8, 7]])
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), MASK)
        colours = np.asarray(mask.convert("RGB"))
    assert colours[0, :3].tolist() == [[0, 0, 0], [9, 8, 7], [224, 224, 224]]
    assert (tmp_path / "mask.png").read_bytes()[24] == 8  # bits of a pixel: OpenCV and others read no fewer as ids


def test_a_picture_knows_its_model_and_options(tmp_path):
    path = tmp_path / "mask.png"
    save_png(path, MASK, ORIGIN)
    assert read_origin(path) == ORIGIN
    assert is_of(path, ORIGIN | {"model": "elsewhere/a"})
    assert not is_of(path, ORIGIN | {"digest": "b2"}) and not is_of(path, ORIGIN | {"options": {"mode": "whole"}})
    assert not is_of(tmp_path / "missing.png", ORIGIN)
    check_replaceable([path, tmp_path / "missing.png"], "--output_dir", "a1")
    check_replaceable([path], "--output_dir")
    with pytest.raises(InputError, match=r"mask\.png is of another model, runs/a: pass another --output_dir"):
        check_replaceable([path], "--output_dir", "b2")


def test_files_of_others_are_not_replaced(tmp_path):
    save_png(tmp_path / "elsewhere.png", MASK, ORIGIN)
    Image.fromarray(MASK).save(tmp_path / "own.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("own", "text", "link", "dangling", "folder"):
        with pytest.raises(InputError, match=rf"{name}\.png is there and was not written by this program"):
            check_replaceable([tmp_path / f"{name}.png"], "--output_dir", "a1")


def test_a_link_at_the_old_partial_name_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".mask.png.partial").symlink_to(tmp_path / "precious")
    save_png(tmp_path / "mask.png", MASK, ORIGIN)
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / ".mask.png.partial").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"precious", ".mask.png.partial", "mask.png"}


def test_what_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/mask.png cannot be written \(") as error:
        save_png(tmp_path / "file" / "mask.png", MASK, ORIGIN)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"--output_dir .*file cannot be written to \(File exists\); pass another"):
        check_writable(tmp_path / "file", "--output_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_that_can_be_written_to_stays_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "--output_dir")
    assert not list((tmp_path / "a" / "b").iterdir())
