import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.data.prepared import encoded, grey_png, ids, palette_png
from u2pl_hf.data.prepare.masks import decode_mask, judge_readings
from u2pl_hf.data.source.class_list import ClassList, parse_class_list
from u2pl_hf.errors import InputError


def read_mask(data, coding, classes):
    return decode_mask(data, coding, classes).ids


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
        (grey_png(np.array([[0, 300]], np.uint16)), "holds 0 to 300, .*: store them in 8 bits"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), "is F, not one channel.*PNG of 8 bits"),
        (encoded(Image.new("RGB", (2, 2))), "is RGB.*--classes"),
        (encoded(Image.new("LA", (2, 2))), "is LA.*grey throughout.* NAME,VALUE such as c,0$"),
        (encoded(Image.new("RGB", (2, 2), (7, 7, 7))), "is RGB.*grey throughout.* NAME,VALUE such as c,7$"),
        (grey_png(np.array([[1, 2, 3, 255]], np.uint8)), "value 3, but .* NAME,VALUE such as c,3$"),
        (palette_png(np.array([[0, 8, 15, 255]], np.uint8)), "values 8, 15, but .* NAME,VALUE such as c,15$"),
        (encoded(Image.new("L", (2, 2)), "jpeg"), "is JPEG.*PNG"),
        (grey_png(np.arange(200, dtype=np.uint8)[None]), "192 more, but .*lossy compression"),
        (encoded(Image.new("CMYK", (2, 2)), "tiff"), "is CMYK.*PNG of 8 bits"),
        (cv2.imencode(".png", np.ones((2, 2, 3), np.uint16))[1].tobytes(), "RGB of 16 bits per channel"),
    ],
)
def test_what_is_no_id_is_named(data, message):
    with pytest.raises(InputError, match=message):
        read_mask(data, "ids", THREE)


def test_cityscapes_label_ids():
    # From the table published with the data set: name, label id, train id.
    pairs = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    labels = np.array([[*range(34), 255]], np.uint8)
    expected = [[*(pairs.get(i, 255) for i in range(34)), 255]]
    assert read_mask(grey_png(labels), "cityscapes", THREE).tolist() == expected
    with pytest.raises(InputError, match="value 34"):
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
    with pytest.raises(InputError, match=r"value \(9,8,7\), which"):
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
    with pytest.raises(InputError, match="value 7, which the class list"):
        read_mask(grey_png(values + 7), "colours", ClassList(("a", "b"), ((0,), (6,)), ((135,),)))


GROUND = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)


def encodings():
    """The same black and white picture in every way that it is stored."""
    eight = Image.fromarray(GROUND * 255)
    palette, reverse = Image.fromarray(GROUND), Image.fromarray(1 - GROUND)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    reverse.putpalette([255, 255, 255, 0, 0, 0])
    images = {"8 bit": eight, "1 bit": eight.convert("1"), "palette": palette, "reverse": reverse}
    images |= {mode: eight.convert(mode) for mode in ("RGB", "RGBA", "LA")}
    return {name: encoded(image) for name, image in images.items()} | {"gif": encoded(eight.convert("1"), "gif")}


@pytest.mark.parametrize("encoding", encodings())
@pytest.mark.parametrize(
    "text", ["bg,0\nfg,255", "bg,0\nfg,255\nfg,1", "bg,0,0,0\nfg,255,255,255", '{"bg": 0, "fg": [[255], [7]]}']
)
def test_the_encoding_of_a_black_and_white_mask_does_not_matter(encoding, text):
    classes = parse_class_list(text, "list")
    assert read_mask(encodings()[encoding], "colours", classes).tolist() == GROUND.tolist()
    turned = ClassList(("fg", "bg"), classes.colours[::-1])
    assert read_mask(encodings()[encoding], "colours", turned).tolist() == (1 - GROUND).tolist()


def test_the_encoding_of_a_grey_mask_does_not_matter():
    """Three tones; a palette whose greys are no values of the list holds indices."""
    tones, classes = np.array([[0, 128, 255]], np.uint8), ClassList(("a", "b"), ((0,), (255,)), ((128,),))
    shuffled = Image.fromarray(np.array([[2, 0, 1]], np.uint8))
    shuffled.putpalette([128] * 3 + [255] * 3 + [0] * 3)
    for data in (grey_png(tones), encoded(shuffled), encoded(Image.fromarray(tones).convert("RGB"))):
        assert read_mask(data, "colours", classes).tolist() == [[0, 255, 1]]
        rgb = ClassList(("a", "b", "c"), ((9, 0, 0), (255,) * 3, (128,) * 3), ((0, 0, 0),))
        assert read_mask(data, "colours", rgb).tolist() == [[255, 2, 1]]
    by_index = ClassList(("bg", "cat"), ((0,), (8,)), ((15,),))
    assert read_mask(palette_png(np.array([[0, 8, 15]], np.uint8)), "colours", by_index).tolist() == [[0, 1, 255]]


def test_a_message_can_be_followed():
    """What the line says to add to the list is all that the mask wants."""
    for data, text in (
        (grey_png(np.array([[0, 7, 255]], np.uint8)), "bg,0"),
        (encoded(Image.new("RGB", (2, 2), (7, 7, 7))), "bg,0"),
        (encoded(Image.new("RGB", (2, 2), (9, 8, 7))), "bg,0,0,0"),
        (grey_png(np.array([[0, 90]], np.uint8)), "bg,0,0,0"),
    ):
        for name in ("bg", "new", "void"):
            with pytest.raises(InputError) as caught:
                read_mask(data, "colours", parse_class_list(text, "list"))
            line = re.search(r"add (NAME\S+) there", str(caught.value))[1].replace("NAME", name)
            read_mask(data, "colours", parse_class_list(f"{text}\n{line}", "list"))
    with pytest.raises(InputError, match=r"holds colours.*NAME,R,G,B"):
        read_mask(encoded(Image.new("RGB", (2, 2), (9, 8, 7))), "colours", parse_class_list("bg,0", "list"))


def judged(classes, masks):
    coding, readings = "colours" if classes.colours else "ids", {}
    for name, data in masks.items():
        readings.setdefault(decode_mask(data, coding, classes).reading, []).append(name)
    return judge_readings(readings, classes)


def test_255_must_have_a_name_where_it_is_all_there_is():
    tones = {name: encodings()[name] for name in ("8 bit", "1 bit", "palette")}
    white, ids_too = {"white": grey_png(np.full((2, 2), 255, np.uint8))}, {"ids": grey_png(GROUND + 1)}
    void = {name: tones[name] for name in ("1 bit", "palette")}
    for text, lines in (
        ("bg\nfg", "bg,0 and fg,255"),
        ("crack", "background,0 and crack,255"),
        ("bg,0\nfg,1", "bg,0 and fg,255"),
        ("bg,0,0,0\nfg,255,0,0", "bg,0,0,0 and fg,255,255,255"),
        ("a\nb\nc", "a,0 and b,255"),
    ):
        classes = parse_class_list(text, "list")
        for masks in ({"8 bit": tones["8 bit"]}, tones, white) if len(classes.names) > 1 else (white,):
            with pytest.raises(
                InputError, match=f"such as {next(iter(masks))}, .*: name both, in lines such as {lines}$"
            ):
                judged(classes, masks)
        named = parse_class_list(lines.replace(" and ", "\n"), "list")
        assert judged(named, tones | white) == []
        if len(classes.names) > 1:
            assert judged(classes, void) == []
    three = ClassList(("a", "b", "c"))
    assert judged(three, ids_too | white | {"8 bit": tones["8 bit"]}) == []
    assert (
        "1 masks are stored in black and white, such as 1 bit" in judged(three, ids_too | {"1 bit": tones["1 bit"]})[0]
    )


def test_masks_that_are_0_throughout_are_read_as_the_others():
    """Black is a class of the list, but the other masks hold ids: then 0 is the id."""
    nothing, ids = grey_png(np.zeros_like(GROUND)), grey_png(GROUND)
    palette = Image.fromarray(np.zeros_like(GROUND))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    for text in ("bg,255,0,0\nfg,0,0,0", "road,128,64,128\ncar,0,0,142\nvoid,0,0,0"):
        classes = parse_class_list(text, "list")
        for empty in (nothing, encoded(palette)):
            with pytest.raises(InputError, match=r"1 grey masks hold colours .*such as empty, and 1 hold class ids"):
                judged(classes, {"empty": empty, "ids": ids})
            assert judged(classes, {"empty": empty}) == []
    assert judged(parse_class_list("bg,0,0,0\nfg,255,0,0", "list"), {"empty": nothing, "ids": ids}) == []


def test_grey_masks_of_a_set_are_ids_or_colours():
    classes = parse_class_list("a,0,0,0\nb,255,0,0\nc,255,255,255", "list")
    colours, numbers = grey_png(GROUND * 255), grey_png(GROUND + 1)
    assert read_mask(colours, "colours", classes).tolist() == (GROUND * 2).tolist()
    assert judged(classes, {"colours": colours}) == judged(classes, {"numbers": numbers}) == []
    with pytest.raises(InputError, match=r"1 grey masks hold colours .*such as x, and 1 hold class ids, such as y"):
        judged(classes, {"x": colours, "y": numbers})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_masks_own_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    square = ids(5, 5)
    for image in (Image.fromarray(square), Image.open(io.BytesIO(palette_png(square)))):
        mask = decode_mask(encoded(image, kind, exif=exif), "ids", THREE)
        upright = {1: square, 2: square[:, ::-1], 3: square[::-1, ::-1], 4: square[::-1], 5: square.T}
        upright |= {6: np.rot90(square, -1), 7: square[::-1, ::-1].T, 8: np.rot90(square)}
        assert np.array_equal(mask.ids, upright[orientation])
        assert mask.orientation and not decode_mask(encoded(image, kind), "ids", THREE).orientation
