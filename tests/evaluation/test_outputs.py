import numpy as np
import pytest
from PIL import Image

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.outputs import check_writable, save_png

MASK = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_picture_is_whole_and_alone(tmp_path):
    save_png(tmp_path / "deep" / "mask.png", MASK)
    assert np.array_equal(np.array(Image.open(tmp_path / "deep" / "mask.png")), MASK)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mask.png"]


def test_what_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/mask.png cannot be written \(") as error:
        save_png(tmp_path / "file" / "mask.png", MASK)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"--output_dir .*file cannot be written to \(File exists\); pass another"):
        check_writable(tmp_path / "file", "--output_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_that_can_be_written_to_stays_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "--output_dir")
    assert not list((tmp_path / "a" / "b").iterdir())
