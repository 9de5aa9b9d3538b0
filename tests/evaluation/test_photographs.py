from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl_hf import files
from u2pl_hf.constants import default_palette
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import same_size_batches
from u2pl_hf.evaluation.outputs import check_pictures, save_png
from u2pl_hf.evaluation.photographs import find_photographs, read_ahead, read_headers, read_photograph
from u2pl_hf.evaluation.pictures import colour_mask, overlay

OUT = Path("nowhere")


def found(*patterns, recursive=False, output_dir=OUT):
    return find_photographs([str(p) for p in patterns], recursive=recursive, output_dir=output_dir)


def save(path, size=(6, 4), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path):
    for name in ("b.png", "a.jpg", "sub/a.png", "sub/deep/c.tif", ".cache/x.png", "sub/.d.png", "results/a_mask.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("text")
    return tmp_path


def test_names_are_places_below_what_was_given(root):
    assert [p.name for p in found(root)] == ["a", "b"]
    everywhere = found(root, recursive=True, output_dir=root / "results")
    assert [p.name for p in everywhere] == ["a", "b", "sub/a", "sub/deep/c"]
    assert [p.name for p in found(root / "sub" / "deep" / "c.tif", root / "b.png")] == ["c", "b"]
    assert [p.name for p in found(root / "**" / "a.*")] == ["a", "sub/a"]
    assert [p.name for p in found(root / "s*" / "*.png")] == ["sub/a"]
    assert [p.name for p in found(root, root / "b.png", root / "*.jpg")] == ["a", "b"]  # each once


def test_names_that_meet_are_refused(root):
    with pytest.raises(InputError, match="share output names"):
        found(root, root / "sub")
    save(root / "b.jpg")
    with pytest.raises(InputError, match=r"b\.jpg and .*b\.png would share"):
        found(root)


def test_a_file_with_brackets_is_a_file(root):
    save(root / "x[1].png")
    assert [p.name for p in found(root / "x[1].png")] == ["x[1]"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.array([[0, 255, 255], [255, 0, 255]], np.uint8)
    deep = Image.fromarray((grey.astype(np.uint16) << 8) | 17)
    image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    (known,) = read_headers(found(path))
    assert known.pixels == 6
    pixels = read_photograph(path)
    assert (pixels.shape, pixels.dtype, pixels.flags.writeable) == ((2, 3, 3), np.uint8, True)
    assert np.array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


def test_numbers_without_black_and_white_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match=r"f\.tif: its pixels are floating-point numbers"):
        read_headers(found(tmp_path / "f.tif"))
    Image.fromarray(np.full((3, 3), 4095, np.uint16)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: it has 16 bits per channel but no value from 4096 on"):
        read_photograph(tmp_path / "x.tif")


def test_images_that_would_fill_the_memory_are_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    with pytest.raises(InputError, match=r"b\.png: not an image that can be read"):
        read_headers(found(root / "b.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)  # PIL warns above, and refuses above twice as many
    assert read_headers(found(root / "b.png"))[0].pixels == 24
    assert read_photograph(root / "b.png").shape == (4, 6, 3)


def test_neighbours_of_one_size_share_a_batch(tmp_path):
    sizes = [(6, 4), (6, 4), (6, 4), (4, 6), (6, 4)]
    for number, size in enumerate(sizes):
        save(tmp_path / f"{number}.png", size, value=number)
    batches = list(same_size_batches(read_ahead(found(tmp_path), 2), 2))
    assert [[photograph.name for photograph, _ in batch] for batch in batches] == [["0", "1"], ["2"], ["3"], ["4"]]
    assert all((pixels[..., 0] == int(photograph.name)).all() for batch in batches for photograph, pixels in batch)
    assert list(same_size_batches(read_ahead([], 2), 2)) == []


def test_what_comes_before_a_damaged_image_is_given(tmp_path):
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[:2000])
    given = []
    with pytest.raises(InputError, match=r"2\.png: not an image that can be read"):
        given.extend(
            [photograph.name for photograph, _ in b] for b in same_size_batches(read_ahead(found(tmp_path), 3), 3)
        )
    assert given == [["0", "1"]]


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.png"
    save_png(path, np.full((3, 4), 7, np.uint8), {})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(path, np.zeros((3, 4), np.uint8), {})
    with Image.open(path) as image:
        assert image.mode == "L" and np.array_equal(np.array(image), np.full((3, 4), 7))
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_a_folder_with_pictures_is_refused(tmp_path):
    check_pictures(tmp_path / "missing", ["a/b", "c.d"], "--save_predictions", overwrite=False)
    save(tmp_path / "sub" / "x.png")
    with pytest.raises(InputError, match=r"--save_predictions .* already holds x\.png"):
        check_pictures(tmp_path, ["y"], "--save_predictions", overwrite=False)
    check_pictures(tmp_path, ["y"], "--save_predictions", overwrite=True)
    with pytest.raises(InputError, match=r"sub/x\.png is there and was not written by this program"):
        check_pictures(tmp_path, ["y", "sub/x"], "--save_predictions", overwrite=True)


@pytest.mark.parametrize("sample_id", ["", "../x", "/x", "a//b", "a/./b", "a\\b", "a\0b"])
def test_ids_that_are_no_names_are_refused(sample_id):
    with pytest.raises(InputError, match="cannot name a file below"):
        check_pictures(OUT, ["fine", sample_id], "--save_predictions", overwrite=False)


def test_overlay_mixes_colours_where_they_are_not_bare():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 5, 3), dtype=np.uint8)
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (600, 5))
    palette = default_palette(3)  # where class 0 is black, which is bare
    expected = np.where(
        np.isin(ids, (0, 255))[..., None], image, (0.7 * image + 0.3 * colour_mask(ids, palette)).round()
    )
    # Halves may be rounded either way.
    assert np.abs(overlay(image, ids, palette, 0.3) - expected).max() <= 1
