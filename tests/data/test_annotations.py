"""Annotation tools' files and label maps: there and back, against the tools' own code, and as the tools write them."""

import base64
import io
import json
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from u2pl_hf.data.annotations import LabelledImage, Style, label_map
from u2pl_hf.data.annotations.coco_json import unpacked
from u2pl_hf.data.annotations.label_studio import from_brush, to_brush
from u2pl_hf.data.annotations.reading import ImageNames, annotation_members, read_annotations
from u2pl_hf.data.annotations.shapes import from_runs, polygon
from u2pl_hf.data.annotations.writing import MARKER, WRITERS, check_export, parts_of, write_annotations
from u2pl_hf.data.source.class_list import ClassList
from u2pl_hf.errors import InputError

NAMES, COLOURS = ("background", "Bäume und Büsche", "b"), ((0, 0, 0), (10, 200, 30), (255, 0, 0))
EXACT = [Style("masks"), Style("polygons", 0.0)]


def label_maps() -> list[np.ndarray]:
    """Noise, whose parts touch at corners; and areas with holes, islands in them, single pixels, and the border."""
    noise, large = np.random.default_rng(0), np.zeros((53, 61), np.uint8)
    large[10:40, 5:50], large[15:30, 10:30], large[20:25, 14:20], large[22, 16] = 1, 0, 2, 255
    large[33:36, 20:40] = 255
    large[0, 0], large[-1, -1], large[-1, 0], large[:4, 20:], large[45, 30] = 1, 2, 255, 2, 1
    return [noise.choice([0, 1, 2, 255], (23, 31)).astype(np.uint8), large, np.full((3, 2), 2, np.uint8)]


def written(folder, kind, style, names=NAMES, maps=None, confidence=None, below=0.0):
    maps = label_maps() if maps is None else maps
    images = [
        LabelledImage(f"ein Ort/Straße {n}.jpg", m.shape, list(parts_of(m, names, confidence, below)))
        for n, m in enumerate(maps)
    ]
    return write_annotations(folder, kind, ClassList(names, COLOURS), lambda _: images, style)


def read_back(folder, size_of, names, rest):
    """The label map of each image by its name."""
    found = read_annotations(annotation_members(folder))
    ids = {name: n for n, name in enumerate(names)}
    return {image.name: label_map(image, size_of(image), ids, rest) for image in found.images}


@pytest.mark.parametrize("names, rest", [(NAMES, 0), (("a", *NAMES[1:]), 255)], ids=["background", "no background"])
@pytest.mark.parametrize("style", EXACT, ids=["masks", "polygons"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_pixel_comes_back(tmp_path, kind, style, names, rest):
    facts = written(tmp_path / "out", kind, style, names)
    maps = label_maps()
    found = read_back(tmp_path / "out", lambda image: image.size, names, rest)
    assert len(found) == facts["images"] == len(maps)
    for name, labels in found.items():
        number = int(name.removesuffix(".jpg")[-1])
        assert np.array_equal(labels, maps[number]), name
    assert (tmp_path / "out" / "class_names.txt").read_text().splitlines()[1] == "Bäume und Büsche,10,200,30"


@pytest.mark.parametrize("kind", ["coco", "cvat"])
def test_classes_keep_their_order_and_colours(tmp_path, kind):
    written(tmp_path / "out", kind, Style())
    found = read_annotations(annotation_members(tmp_path / "out"))
    assert found.names == [*NAMES, "ignore"]
    assert kind == "coco" or found.colours[NAMES[1]] == COLOURS[1]


@pytest.mark.parametrize("kind", WRITERS)
def test_simplified_polygons_change_pixels_at_borders_alone(tmp_path, kind):
    labels = np.zeros((200, 200), np.uint8)
    cv2.circle(labels, (90, 100), 60, 1, -1)
    cv2.circle(labels, (80, 90), 25, 2, -1)
    cv2.ellipse(labels, (120, 120), (20, 8), 30, 0, 360, 0, -1)
    counts = {}
    for tolerance in (0.0, 1.0):
        folder = tmp_path / str(tolerance)
        written(folder, kind, Style("polygons", tolerance), maps=[labels])
        (found,) = read_back(folder, lambda image: image.size, NAMES, 0).values()
        counts[tolerance] = folder_points(folder, kind)
        border = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert not ((found != labels) & ~border).any()
        assert (found != labels).mean() < 0.02 * (tolerance > 0) + 1e-9
    assert counts[1.0] < counts[0.0] / 3


def folder_points(folder, kind) -> int:
    suffix = "*.xml" if kind == "cvat" else "*.json"
    return sum(len(path.read_text()) for path in folder.rglob(suffix) if path.name != MARKER)


def test_coco_is_what_pycocotools_draws(tmp_path):
    """Its own class draws the file that is written, object by object, and the same file is read as it draws it."""
    for style in EXACT:
        written(tmp_path / style.shapes, "coco", style)
        api = COCO(str(tmp_path / style.shapes / "annotations.json"))
        for number, labels in enumerate(label_maps(), 1):
            drawn = np.zeros_like(labels)
            for item in api.loadAnns(api.getAnnIds(imgIds=number)):
                pixels = api.annToMask(item).astype(bool)
                assert item["area"] == pixels.sum()
                rows, columns = np.nonzero(pixels)
                bounds = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert item["bbox"] == bounds
                drawn[pixels] = {4: 255}.get(item["category_id"], item["category_id"] - 1)
            assert np.array_equal(drawn, labels)


def coco_file(folder, *objects, size=(30, 40), categories=((7, "dog"), (3, "cat"))):
    """Hand-made, as the format is documented."""
    content = {
        "info": {"year": 2024},
        "licenses": [],
        "images": [{"id": 99, "file_name": "a.jpg", "width": size[1], "height": size[0]}],
        "annotations": [{"id": n, "image_id": 99, "category_id": 7} | item for n, item in enumerate(objects)],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in categories],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def only_labels(path, rest=255, kind=None):
    found = read_annotations(annotation_members(path), kind)
    (image,) = found.images
    return label_map(image, image.size or (30, 40), {name: n for n, name in enumerate(found.names)}, rest)


def test_coco_of_all_three_kinds_is_read(tmp_path):
    shape = [[5.2, 4.1, 20.7, 3.3, 25.5, 20.9, 8.1, 25.0], [30, 2, 38, 2, 38, 9]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, 30, 40)))
    runs, rows = [], np.asfortranarray(expected).ravel(order="F")
    for value in np.split(rows, np.flatnonzero(np.diff(rows)) + 1):
        runs.append(len(value))
    packed = coco_mask.encode(np.asfortranarray(expected))["counts"].decode()
    for segmentation in (shape, {"size": [30, 40], "counts": runs}, {"size": [30, 40], "counts": packed}):
        labels = only_labels(coco_file(tmp_path, {"segmentation": segmentation}))
        # Category ids rise: cat is 0, dog 1.
        assert np.array_equal(labels == 1, expected.astype(bool)) and set(np.unique(labels)) == {1, 255}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_compressed_runs_are_those_of_pycocotools(tmp_path, share):
    mask = np.random.default_rng(1).random((300, 40)) < share
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = unpacked(packed)
    assert sum(counts) == mask.size
    assert coco_mask.frPyObjects({"size": [300, 40], "counts": counts}, 300, 40)["counts"].decode() == packed
    path = coco_file(tmp_path, {"segmentation": {"size": [300, 40], "counts": packed}}, size=(300, 40))
    assert np.array_equal(only_labels(path) == 1, mask)


def test_later_objects_lie_above_and_crowds_below(tmp_path):
    def square(left, right):
        return {"segmentation": [[left, 0, right, 0, right, 30, left, 30]]}

    crowd = {"size": [30, 40], "counts": [0, 1200]}
    objects = [square(0, 20), square(10, 30) | {"category_id": 3}, {"segmentation": crowd, "iscrowd": 1}]
    labels = only_labels(coco_file(tmp_path, *objects), rest=0)
    assert labels[5].tolist() == [1] * 10 + [0] * 20 + [255] * 10


def test_cvat_as_it_is_documented(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text(
        """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><id>1</id><name>t</name><mode>annotation</mode><labels>
<label><name>road</name><color>#ff0000</color><attributes></attributes></label>
<label><name>car</name><color>#00ff00</color></label></labels></task></meta>
<image id="0" name="a.jpg" width="8" height="6">
  <polygon label="car" source="manual" occluded="0" points="0.00,0.00;3.00,0.00;3.00,2.00;0.00,2.00" z_order="1"/>
  <mask label="road" source="manual" occluded="0" rle="2, 3, 1" left="2" top="1" width="3" height="2" z_order="0"/>
  <box label="road" xtl="6" ytl="4" xbr="8" ybr="6" occluded="0" z_order="0"/>
  <tag label="road"/><points label="car" points="1,1" z_order="0"/>
</image></annotations>"""
    )
    found = read_annotations(annotation_members(path))
    assert found.names == ["road", "car"] and found.colours == {"road": (255, 0, 0), "car": (0, 255, 0)}
    assert +found.left_out == {"points": 1}
    expected = np.full((6, 8), 255)
    expected[1, 4] = expected[2, 2:4] = 0
    expected[4:, 6:] = 0
    expected[:2, :3] = 1
    assert np.array_equal(only_labels(path), expected)


def test_cvat_turned_boxes_and_ellipses(tmp_path):
    path, head = tmp_path / "a.xml", '<annotations><image id="0" name="a.jpg" width="40" height="30">'
    turned = '<box label="x" xtl="10" ytl="13" xbr="30" ybr="17" rotation="90"/>'
    path.write_text(f'{head}{turned}<ellipse label="y" cx="8" cy="8" rx="6" ry="4"/></image></annotations>')
    labels, (y, x) = only_labels(path), np.mgrid[:30, :40] + 0.5
    assert np.array_equal(labels == 0, (abs(x - 20) < 2) & (abs(y - 15) < 10))
    inside = ((x - 8) / 6) ** 2 + ((y - 8) / 4) ** 2 < 1
    assert ((labels == 1) != inside).sum() <= 2


def labelme_file(folder, *shapes, **fields):
    path = folder / "a.json"
    head = {"version": "5.5.0", "flags": {}, "imageData": None, "imagePath": "..\\photos\\a.jpg"}
    path.write_text(json.dumps(head | {"shapes": list(shapes), "imageHeight": 30, "imageWidth": 40} | fields))
    return path


def test_labelme_as_it_writes(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(png, "PNG")
    mask = base64.b64encode(png.getvalue()).decode()
    shapes = [
        {"label": "b", "points": [[2, 3], [12, 3], [12, 9], [2, 9]], "group_id": None, "shape_type": "polygon"},
        {"label": "a", "points": [[20, 10], [15, 5]], "shape_type": "rectangle", "flags": {}},
        {"label": "c", "points": [[30, 20], [30, 25]], "shape_type": "circle"},
        {"label": "c", "points": [[3, 20], [4, 21]], "shape_type": "mask", "mask": mask},
        {"label": "z", "points": [[1, 1]], "shape_type": "point"},
    ]  # fmt: skip
    path = labelme_file(tmp_path, *shapes)
    found, labels = read_annotations(annotation_members(path)), only_labels(path)
    assert found.images[0].name == "../photos/a.jpg" and found.left_out == {"point": 1}
    expected, (y, x) = np.full((30, 40), 255), np.mgrid[:30, :40] + 0.5
    expected[3:9, 2:12], expected[5:10, 15:20] = 1, 0
    expected[(x - 30) ** 2 + (y - 20) ** 2 < 25] = 2
    expected[20, 3] = expected[21, 3] = expected[21, 4] = 2
    assert np.array_equal(labels, expected)


# Made once by encode_rle of label-studio-converter 0.0.59, the first of a mask in all channels, the second of noise.
BRUSHES = [
    (["0010100", "0010010", "1010110", "1000001", "1001000"],
     [0, 0, 0, 140, 57, 27, 252, 224, 17, 255, 198, 1, 31, 253, 240, 8, 255, 231, 0, 143, 254, 48, 8, 255, 227, 0, 143,
      254, 48, 9, 255, 227, 0, 143, 255, 9, 128, 79, 255, 56, 4, 127, 246, 192, 0]),
    (["1111", "0011", "1111"],
     [0, 0, 0, 48, 57, 27, 248, 11, 0, 66, 0, 92, 7, 248, 15, 128, 108, 128, 62, 2, 208, 1, 96, 121, 129, 198, 2, 208,
      13, 160, 84, 1, 56, 7, 248, 23, 128, 28, 129, 172, 0, 0, 0, 32, 92, 0, 108, 0, 0, 22, 160, 16, 129, 4, 2, 208, 8,
      64, 0, 0, 88, 7, 248, 1, 32, 111, 128, 4, 7, 248, 3, 192, 45, 0, 144, 7, 248, 25, 224, 116, 1, 146, 2, 208, 22,
      96, 27, 129, 56, 7, 248]),
]  # fmt: skip


def test_brush_strokes_are_those_of_label_studio():
    for rows, packed in BRUSHES:
        mask = np.array([[value == "1" for value in row] for row in rows])
        assert np.array_equal(from_brush(packed, mask.shape), mask)
    first = np.array([[value == "1" for value in row] for row in BRUSHES[0][0]])
    assert to_brush(first) == BRUSHES[0][1]
    large = np.ones((300, 301), bool)
    large[7, 3:200] = False
    assert np.array_equal(from_brush(to_brush(large), large.shape), large)


def task(*results, image="/data/upload/1/0a1b2c3d-a%20b.jpg", **annotation):
    size = {"original_width": 40, "original_height": 30, "image_rotation": 0, "to_name": "image", "from_name": "label"}
    return {
        "id": 1,
        "data": {"image": image},
        "annotations": [{"id": 4, "result": [size | r for r in results]} | annotation],
    }


def test_label_studio_as_it_exports(tmp_path):
    points, corner = [[0, 0], [50, 0], [50, 50], [0, 50]], {"x": 75, "y": 90, "width": 25, "height": 10}
    runs = to_brush(np.eye(30, 40, dtype=bool))
    results = [
        {"type": "polygonlabels", "value": {"points": points, "closed": True, "polygonlabels": ["b"]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": runs, "brushlabels": ["a"]}},
        {"type": "rectanglelabels", "value": corner | {"rotation": 0, "rectanglelabels": ["a"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]  # fmt: skip
    path = tmp_path / "export.at.json"
    path.write_text(json.dumps([task(*results)]))
    expected = np.full((30, 40), 255)
    expected[:15, :20] = 1
    expected[np.eye(30, 40, dtype=bool)] = 0
    expected[27:, 30:] = 0
    assert np.array_equal(only_labels(path), expected)
    names = ImageNames({"x": path.with_name("a b.jpg")}, str)
    assert names.find(read_annotations(annotation_members(path)).images[0].name) == ["x"]


def test_label_studio_leaves_out_what_nobody_said(tmp_path):
    box = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["a"]}}
    cancelled, predicted = (
        task(box, was_cancelled=True),
        {"data": {"image": "s3://x/b.png"}, "predictions": [{"result": []}]},
    )
    (tmp_path / "t.json").write_text(
        json.dumps([cancelled, predicted, task(box, image="/data/local-files/?d=in/c.png")])
    )
    found = read_annotations(annotation_members(tmp_path))
    assert [len(image.regions) for image in found.images] == [0, 0, 1] and found.images[2].name == "in/c.png"
    assert "1 tasks hold predictions" in found.notes[0]


def test_supervisely_as_it_writes(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(png, "PNG")
    bitmap = {"data": base64.b64encode(zlib.compress(png.getvalue())).decode(), "origin": [3, 20]}
    rings = {"exterior": [[2, 2], [22, 2], [22, 12], [2, 12]], "interior": [[[5, 5], [8, 5], [8, 8], [5, 8]]]}
    objects = [
        {"id": 1, "classTitle": "b", "geometryType": "polygon", "points": rings},
        {"classTitle": "a", "geometryType": "bitmap", "bitmap": bitmap},
    ]
    (tmp_path / "ds" / "ann").mkdir(parents=True)
    content = {"size": {"height": 30, "width": 40}, "tags": [], "objects": objects}
    (tmp_path / "ds" / "ann" / "a.jpg.json").write_text(json.dumps(content))
    classes = [{"title": "b", "color": "#0000FF", "shape": "any"}, {"title": "a", "color": "#00FF00", "shape": "any"}]
    (tmp_path / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    found = read_annotations(annotation_members(tmp_path))
    assert found.names == ["b", "a"] and found.images[0].name == "ds/a.jpg"
    expected = np.full((30, 40), 255)
    expected[2:12, 2:22] = 0
    expected[5:8, 5:8] = 255
    expected[20, 4] = expected[21, 3:5] = 1
    assert np.array_equal(only_labels(tmp_path), expected)


def test_uncertain_regions_are_marked(tmp_path):
    labels = np.zeros((10, 12), np.uint8)
    labels[1:4, 1:4], labels[6:9, 6:9] = 1, 2
    confidence = np.full(labels.shape, 0.9)
    confidence[6:9, 6:9] = 0.25
    for kind in WRITERS:
        facts = written(tmp_path / kind, kind, Style("polygons"), maps=[labels], confidence=confidence, below=0.5)
        assert (facts["regions"], facts["uncertain"]) == (2, 1)
    coco = json.loads((tmp_path / "coco" / "annotations.json").read_text())["annotations"]
    assert [item["attributes"] for item in coco] == [
        {"uncertain": False, "confidence": 0.9}, {"uncertain": True, "confidence": 0.25},
    ]  # fmt: skip
    shapes = json.loads(next((tmp_path / "labelme").rglob("Stra*.json")).read_text())["shapes"]
    assert [shape["flags"]["uncertain"] for shape in shapes] == [False, True]
    (said,) = json.loads((tmp_path / "labelstudio" / "tasks.json").read_text())[0]["predictions"]
    assert (
        said["result"][1]["meta"] == {"text": ["uncertain", "confidence 0.2500"]} and said["result"][1]["score"] == 0.25
    )
    assert '<attribute name="uncertain">true</attribute>' in (tmp_path / "cvat" / "annotations.xml").read_text()


def cvat_text(shape):
    return f'<annotations><image id="0" name="a.jpg" width="40" height="30">{shape}</image></annotations>'


ENTITIES = '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'
MALFORMED = {
    "a.json": [
        ("{", "a.json is no JSON"),
        ('{"a": 1}', "is of no format that is known here"),
        ('{"images": [], "annotations": [{}], "categories": []}', "annotations.0.category_id is missing"),
        ('{"shapes": [{"label": "a", "points": [[1, "x"]]}], "imagePath": "a.jpg"}', "shapes.0.points.0.1 is 'x'"),
        ('[{"data": {"image": "a.jpg"}, "annotations": [{"result": [{"type": "polygonlabels", "value": {}}]}]}]',
         "0.annotations.0.result.0 has no original_width"),
        ('[{"image": "a.jpg", "label": []}]', "0.data is missing"),
    ],
    "a.xml": [
        ("<annotations>", "a.xml is no XML to read"),
        (ENTITIES, "a.xml is no XML to read (EntitiesForbidden"),
        ("<annotations><track/></annotations>", "holds tracks of a film"),
        (cvat_text('<polygon label="a" points="1,2;x,3"/>'), "image 0 (a.jpg), polygon 0: points is '1,2;x,3'"),
        (cvat_text('<mask label="a" rle="1" left="0" top="0" width="1"/>'), "mask 0 has no height"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, text, told", [(name, *case) for name, cases in MALFORMED.items() for case in cases])
def test_a_malformed_file_is_told_with_its_place(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        read_annotations(annotation_members(tmp_path / name))
    assert told in str(refused.value) and name in str(refused.value)


UNDRAWABLE = [
    ({"segmentation": {"size": [30, 40], "counts": [5, 5]}}, "its runs hold 10 pixels, not 40x30"),
    ({"segmentation": {"size": [3, 4], "counts": [12]}}, "its size is [3, 4], not [30, 40]"),
    ({"segmentation": {"size": [30, 40], "counts": "kaputt!"}}, "cannot be drawn"),
    ({"segmentation": {"size": [30, 40], "counts": "0o"}}, "its run lengths end too early"),
    ({"segmentation": {"size": [30, 40], "counts": [1201, -1]}}, "or one is negative"),
    ({"segmentation": [[0, 0, 9e8, 0, 5, 5]]}, "farther away than 100000 pixels"),
    ({"segmentation": [[1, 2, 3, 4]]}, "a polygon is three or more points"),
]


@pytest.mark.parametrize("item, told", UNDRAWABLE)
def test_an_object_that_cannot_be_drawn_is_told_with_its_place(tmp_path, item, told):
    with pytest.raises(InputError, match=r"annotations\.0 cannot be drawn") as refused:
        only_labels(coco_file(tmp_path, item))
    assert told in str(refused.value)


def test_sizes_must_be_those_of_the_upright_image(tmp_path):
    (image,) = read_annotations(annotation_members(coco_file(tmp_path))).images
    with pytest.raises(InputError, match=r"the image is 30x40, but .*images.0 annotates one of 40x30; as it is stored"):
        label_map(image, (40, 30), {}, 0)


def test_a_pixel_belongs_to_a_polygon_if_its_centre_does():
    patch = polygon([[-5, -5], [2.4, -5], [2.6, 9], [-5, 9]], (3, 4))
    # At 2.4 + 0.2 (y + 5) / 14 the edge passes the centres of the three rows: at 2.479, 2.493 and 2.507.
    assert patch.left == patch.top == 0
    assert patch.mask.tolist() == [[True, True, False], [True, True, False], [True, True, True]]
    assert polygon([[50, 50], [60, 50], [60, 60]], (3, 4)).mask.sum() == 0


def test_names_find_images_by_the_end_of_their_path(tmp_path):
    paths = {"x/a": tmp_path / "x" / "a.jpg", "y/a": tmp_path / "y" / "a.jpg", "b": tmp_path / "b.jpg"}
    names = ImageNames(paths, str)
    assert names.find("C:\\photos\\x\\a.jpg") == ["x/a"] and names.find("./b.jpg") == ["b"]
    assert names.find("a.jpg") == ["x/a", "y/a"] and names.find("c.jpg") == []


def test_runs_that_would_reach_out_of_their_memory_are_refused():
    # Their sum is 100 in 64 bits.
    for counts, size in (([2**62] * 3 + [2**62 + 100], (10, 10)), ([10**16], (10**8, 10**8)), ([1.5, 98.5], (10, 10))):
        with pytest.raises((ValueError, TypeError)):
            from_runs(counts, *size)


def test_an_export_that_was_corrected_is_kept(tmp_path):
    folder, classes = tmp_path / "out", ClassList(("a", "b"), None)
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7] = 1

    def export():
        check_export(folder, "labelme", "--output_dir")
        image = LabelledImage("x.png", mask.shape, list(parts_of(mask, classes.names)), None)
        write_annotations(folder, "labelme", classes, lambda _: iter([image]), Style("polygons", 0.5))

    export()
    export()
    (file,) = folder.glob("x*.json")
    file.write_text(file.read_text() + " ")
    with pytest.raises(InputError, match="was changed or added since it was exported"):
        export()
