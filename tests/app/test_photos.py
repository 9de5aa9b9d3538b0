import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.app_server import NAMES, tiny_model
from u2pl_hf.app import markup, photos
from u2pl_hf.constants import IMAGE_MEAN, IMAGE_STD
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import class_colours, class_names, predict
from u2pl_hf.hub.model_card import render_model_card

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)


def test_labels_and_entropy_are_those_of_the_models_softmax():
    model = tiny_model()
    found = predict(model, PIXELS)
    normal = (PIXELS / 255 - IMAGE_MEAN) / IMAGE_STD
    with torch.no_grad():
        logits = model(torch.from_numpy(normal).float().permute(2, 0, 1)[None]).logits
        logits = torch.nn.functional.interpolate(logits, size=(37, 53), mode="bilinear", align_corners=True)[0]
    weight = np.exp(logits.double().numpy())
    probability = weight / weight.sum(0)
    assert np.allclose(found.entropy, -(probability * np.log(probability)).sum(0), atol=1e-5)
    assert np.array_equal(found.labels, probability.argmax(0)) and found.labels.dtype == np.uint8
    assert np.array_equal(found.image, PIXELS)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 3)])
def test_small_images(size):
    found = predict(tiny_model(), np.full((*size, 3), 90, np.uint8))
    assert found.labels.shape == found.entropy.shape == size
    gamma, unreliable = photos.split_reliable(found.entropy, 0.2)
    assert found.entropy.min() <= gamma <= found.entropy.max() and unreliable.any()


def test_one_class():
    found = predict(tiny_model(["all"]), PIXELS)
    assert photos.class_shares(found.labels) == [(0, 1.0)] and not found.entropy.any()
    gamma, unreliable = photos.split_reliable(found.entropy, 0.2)
    assert gamma == 0 and unreliable.all()
    assert "log 1 = 0.00 nats" in markup.entropy_scale(gamma, 1.0, 1)


def test_large_images_are_shrunk_by_averaging():
    checks = (np.indices((300, 1200)).sum(0) % 2 * 200).astype(np.uint8)
    image = np.stack([checks] * 3, axis=-1)
    small = photos.shrink(image, 120)
    assert small.shape == (30, 120, 3)
    assert np.abs(small[5:-5, 5:-5].astype(int) - 100).max() <= 2
    assert photos.shrink(image, 1200) is image
    assert photos.shrink(np.zeros((5000, 1, 3), np.uint8), 50).shape == (50, 1, 3)


def test_shares_largest_first_then_by_id():
    ids = np.array([[7, 7, 2, 2], [5, 0, 0, 0], [254, 254, 254, 254]], np.uint8)
    assert photos.class_shares(ids) == [(254, 4 / 12), (0, 3 / 12), (2, 2 / 12), (7, 2 / 12), (5, 1 / 12)]


@pytest.mark.parametrize("alpha", [0.0, 0.07, 0.2, 0.5, 0.93, 1.0])
def test_gamma_is_the_quantile_of_the_image(alpha):
    entropy = np.random.default_rng(1).gamma(0.5, size=(31, 47)).astype(np.float32)
    gamma, unreliable = photos.split_reliable(entropy, alpha)
    assert gamma == pytest.approx(np.quantile(entropy.astype(float), 1 - alpha), rel=1e-5)
    assert np.array_equal(unreliable, entropy >= np.float32(gamma))
    # No two values are equal, so the share is alpha to within a pixel.
    assert abs(unreliable.sum() - alpha * entropy.size) <= 1


def test_equal_entropy_everywhere_is_unreliable_everywhere():
    entropy = np.full((4, 6), math.log(3), np.float32)
    for alpha in (0.0, 0.2, 1.0):
        gamma, unreliable = photos.split_reliable(entropy, alpha)
        assert gamma == pytest.approx(math.log(3)) and unreliable.all()


def test_photos_of_every_mode(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown a quarter clockwise
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(photos.read_photo(tmp_path / "turned.png"), np.rot90(PIXELS, -1))
    grey = PIXELS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        assert np.array_equal(photos.read_photo(tmp_path / name), np.stack([grey] * 3, -1))
    Image.fromarray(np.dstack([PIXELS, grey])).save(tmp_path / "alpha.png")
    assert np.array_equal(photos.read_photo(tmp_path / "alpha.png"), PIXELS)
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.gif")
    assert photos.read_photo(tmp_path / "dot.gif").tolist() == [[[9, 8, 7]]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_photo(tmp_path):
    (tmp_path / "fake.jpg").write_text("not a picture")
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name in ("fake.jpg", "half.png", "missing.png"):
        with pytest.raises(InputError, match=f"^{name}: not an image that can be read .*; pass a JPEG"):
            photos.read_photo(tmp_path / name)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 900, np.uint16)).save(tmp_path / "dark.png")
    for name, told in (("float.tif", "its pixels are floating-point"), ("dark.png", "it has 16 bits per channel")):
        with pytest.raises(InputError, match=f"^{name}: {told}"):
            photos.read_photo(tmp_path / name)
    for width in (12_000, 20_000):  # the second is more than Pillow itself takes
        Image.new("1", (width, 9_000)).save(tmp_path / "wall.png")
        with pytest.raises(InputError, match=r"^wall.png: not an image that can be read .*pixels"):
            photos.read_photo(tmp_path / "wall.png")


def test_examples(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("b.png", "a.JPG"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    assert [file.name for file in photos.find_examples([str(tmp_path), str(tmp_path / "b.png")])] == ["a.JPG", "b.png"]
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere.png"):
        with pytest.raises(InputError, match=rf"{path}: no image there"):
            photos.find_examples([str(tmp_path / path)])
    with pytest.raises(InputError, match=r"notes.txt: not an image"):
        photos.find_examples([str(tmp_path / "notes.txt")])


def test_names_are_escaped():
    table = markup.legend([(2, 0.75), (0, 0.2499), (1, 0.0001)], NAMES, [[1, 2, 3]] * 4)
    assert "car &lt;b&gt;" in table and "<b>" not in table
    places = [table.index(text) for text in ("car", "75.0 %", "wall", "25.0 %", "tree", "&lt; 0.1 %")]
    assert places == sorted(places)
    assert "<script>" not in markup.title("<script>", ["<script>"])


def test_facts_come_from_configuration_and_card(tmp_path):
    scores = {"best": {"step": 3, "mean_iou": 0.6125}, "last": {"step": 5, "mean_iou": 0.5}}
    results = {"dataset": "town/streets", "subset": "validation", "class_names": NAMES, "method": "u2pl", **scores}
    assert photos.card_scores(str(tmp_path)) == []
    (tmp_path / "README.md").write_text(render_model_card(results))
    assert photos.card_scores(str(tmp_path)) == [
        "50.0 % mIoU (last, step 5) on town/streets, validation",
        "61.3 % mIoU (best, step 3) on town/streets, validation",
    ]
    by_hand = (tmp_path / "README.md").read_text().replace("0.6125", "best").replace("value: 0.5", "value: 1")
    (tmp_path / "README.md").write_text(by_hand)
    assert photos.card_scores(str(tmp_path)) == ["100.0 % mIoU (last, step 5) on town/streets, validation"]
    (tmp_path / "README.md").write_text("---\nmodel-index: [1\n---\n")
    assert photos.card_scores(str(tmp_path)) == []
    model = tiny_model()
    count = sum(p.numel() for p in model.parameters())
    assert photos.describe_model(model) == f"resnet18 backbone, {count / 1e6:.1f} million parameters, 4 classes"
    assert class_names(model) == NAMES and class_colours(model)[1] == [128, 0, 0]
    assert photos.model_title(str(tmp_path)) == "/".join(tmp_path.parts[-2:])
    assert photos.model_title("user/net") == "user/net"
