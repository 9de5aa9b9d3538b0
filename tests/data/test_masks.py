import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.data.prepared import encoded, grey_png, ids, palette_png
from u2pl_hf.data.class_list import ClassList
from u2pl_hf.data.masks import BadMask, read_mask

THREE = ClassList(("a", "b", "c"))
COLOURS = ((0, 0, 0), (200, 10, 10), (0, 250, 0))
PAINTED = ClassList(("a", "b", "c"), COLOURS, ((1, 2, 3),))


def painted(labels):
    pixels = np.zeros((*labels.shape, 3), np.uint8)
    for class_id, colour in enumerate(COLOURS):
        pixels[labels == class_id] = colour
    pixels[labels == 255] = (1, 2, 3)
    return Image.fromarray(pixels)


def test_ids_of_every_kind():
    labels = ids()
    for data in (
        grey_png(labels),
        palette_png(labels),
        grey_png(labels.astype(np.uint16)),
        encoded(Image.fromarray(labels.astype(np.int32)), "tiff"),
    ):
        got = read_mask(data, "ids", THREE)
        assert got.dtype == np.uint8
        assert np.array_equal(got, labels)
    two = ids(values=(0, 1))
    assert np.array_equal(read_mask(encoded(Image.fromarray(two.astype(bool))), "ids", THREE), two)
    assert read_mask(grey_png(np.array([[2]], np.uint8)), "ids", THREE).tolist() == [[2]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (grey_png(np.array([[0, 3, 3, 254]], np.uint8)), "values 3, 254, but there are 3 classes"),
        (grey_png(np.array([[0, 7]], np.uint8)), "the value 7,"),
        (grey_png(np.array([[0, 300]], np.uint16)), "from 0 to 300"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), "is F, not one channel"),
        (encoded(Image.new("RGB", (2, 2))), "is RGB.*--classes"),
        (encoded(Image.new("LA", (2, 2))), "is LA"),
    ],
)
def test_what_is_no_id_is_named(data, message):
    with pytest.raises(BadMask, match=message):
        read_mask(data, "ids", THREE)


def test_cityscapes_label_ids():
    # From the table published with the data set: name, label id, train id.
    pairs = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    labels = np.array([[*range(34), 255]], np.uint8)
    expected = [[*(pairs.get(i, 255) for i in range(34)), 255]]
    assert read_mask(grey_png(labels), "cityscapes", THREE).tolist() == expected
    with pytest.raises(BadMask, match="value 34"):
        read_mask(grey_png(np.array([[34]], np.uint8)), "cityscapes", THREE)


def test_sbd_matlab_file():
    labels, out = ids(values=(0, 1, 2)), io.BytesIO()
    savemat(out, {"GTcls": {"Segmentation": labels, "Boundaries": [1]}})
    assert np.array_equal(read_mask(out.getvalue(), "sbd", THREE), labels)


def test_colours():
    labels = ids()
    image = painted(labels)
    assert np.array_equal(read_mask(encoded(image), "colours", PAINTED), labels)
    assert np.array_equal(read_mask(encoded(image.convert("RGBA")), "colours", PAINTED), labels)
    assert np.array_equal(read_mask(grey_png(labels), "colours", PAINTED), labels)
    image.putpixel((0, 0), (9, 8, 7))
    with pytest.raises(BadMask, match=r"value \(9,8,7\), which"):
        read_mask(encoded(image), "colours", PAINTED)


def test_palette_masks_with_a_colour_table():
    """The palette says whether the indices are ids, or colours that a drawing program has numbered."""
    labels = ids()
    shuffled = painted(labels).quantize(4)
    assert set(np.unique(np.asarray(shuffled))) != set(np.unique(labels))
    assert np.array_equal(read_mask(encoded(shuffled), "colours", PAINTED), labels)
    in_place = Image.fromarray(labels)
    in_place.putpalette([value for colour in COLOURS for value in colour] + [0] * 750 + [224, 224, 192] * 1)
    assert np.array_equal(read_mask(encoded(in_place), "colours", PAINTED), labels)
    assert np.array_equal(read_mask(palette_png(labels), "colours", PAINTED), labels)
    only_black = Image.fromarray(np.full((2, 2), 3, np.uint8))
    only_black.putpalette([9, 9, 9] * 3 + [0, 0, 0])
    assert not read_mask(encoded(only_black), "colours", PAINTED).any()


def test_grey_values():
    table = ClassList(("background", "wire"), ((0,), (255,)), ((128,),))
    values = np.array([[0, 255, 128]], np.uint8)
    assert read_mask(grey_png(values), "colours", table).tolist() == [[0, 1, 255]]
    assert read_mask(encoded(Image.fromarray(values).convert("RGB")), "colours", table).tolist() == [[0, 1, 255]]
    other = ClassList(("background", "wire"), ((0,), (128,)))
    assert read_mask(grey_png(values), "colours", other).tolist() == [[0, 255, 1]]
    with pytest.raises(BadMask, match="value 7, which the class list"):
        read_mask(grey_png(values + 7), "colours", ClassList(("a", "b"), ((0,), (6,)), ((135,),)))
