"""Sliding windows: against loops written here, and in pieces of rows against the whole."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.evaluation.test_inference import Pointwise, WindowIndex
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.evaluation import segmentation
from u2pl_hf.evaluation.inference import as_bytes, confidence_of, predict_images
from u2pl_hf.evaluation.segmentation import segment, segment_rows
from u2pl_hf.pixels import normalize

# Height, width, window, stride: shifted last windows, exact multiples, one side or both below the window, one pixel.
SHAPES = [
    (70, 91, 33, 16),
    (66, 99, 33, 33),
    (40, 150, 64, 43),
    (150, 40, 64, None),
    (20, 30, 33, 5),
    (33, 33, 33, None),
    (34, 33, 33, 1),
    (1, 50, 17, 9),
    (1, 1, 769, None),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = U2PLConfig(
        backbone="resnet18", base_width=4, head_channels=8, representation_channels=0, num_labels=5, stem="plain"
    )
    return U2PLForSemanticSegmentation(config).eval().to(memory_format=torch.channels_last)


def photographs(*shape):
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8))


def slide_by_loops(model, pixel_values, window, stride):
    """Sum over windows divided by how many lie over each pixel; each window is run alone, in double precision after."""
    _, _, height, width = pixel_values.shape
    tall, wide = min(window, height), min(window, width)

    def starts(length, side):
        found = [0]
        while found[-1] + side < length:
            found.append(min(found[-1] + stride, length - side))
        return found

    total = torch.zeros(model.config.num_labels, height, width, dtype=torch.double)
    covered = np.zeros((height, width), int)
    for y in starts(height, tall):
        for x in starts(width, wide):
            with torch.no_grad():
                logits = model(pixel_values[:, :, y : y + tall, x : x + wide]).logits
            logits = F.interpolate(logits, (tall, wide), mode="bilinear", align_corners=True)[0].double()
            for row, column in itertools.product(range(tall), range(wide)):
                covered[y + row, x + column] += 1
                total[:, y + row, x + column] += logits[:, row, column]
    assert covered.min() >= 1
    return total / torch.from_numpy(covered)


@pytest.mark.parametrize(("height", "width", "window", "stride"), [(23, 31, 12, 7), (24, 24, 12, 12), (9, 31, 12, 5)])
def test_segment_equals_loops_over_windows_and_pixels(model, height, width, window, stride):
    x = normalize(photographs(1, 3, height, width), None)
    expected = slide_by_loops(model, x, window, stride)
    got = segment(model, x, mode="slide", window=window, stride=stride)
    torch.testing.assert_close(got[0].double(), expected, rtol=1e-5, atol=1e-5)
    mirrored = slide_by_loops(model, x.flip(-1), window, stride).flip(-1)
    views = [scores.softmax(dim=0) for scores in (expected, mirrored)]
    got = segment(model, x, mode="slide", window=window, stride=stride, flip=True)
    torch.testing.assert_close(got[0].double(), sum(views) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width", "window", "stride"), SHAPES)
def test_rows_are_the_whole_to_the_last_bit(model, monkeypatch, height, width, window, stride, flip):
    images = photographs(2, 3, height, width)
    for window_batch, piece in ((1, 64), (3, 5)):
        monkeypatch.setattr(segmentation, "PIECE", piece)
        options = {"mode": "slide", "window": window, "stride": stride, "flip": flip, "window_batch": window_batch}
        expected = segment(model, normalize(images, None), **options)
        got, place = torch.full_like(expected, torch.nan), (0, 0)
        for image, first, scores in segment_rows(model, images, **options):
            assert (image, first) == place and scores.shape[1] <= piece
            got[image, :, first : first + scores.shape[1]] = scores
            last = first + scores.shape[1]
            place = (image, last) if last < height else (image + 1, 0)
        assert place == (2, 0)
        assert torch.equal(got, expected)


def test_no_map_of_the_whole_image_is_held(model, monkeypatch):
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                sizes.append(result.untyped_storage().nbytes() // 4)
            return result

    image = photographs(900, 60, 3).numpy()
    with Watched():
        predict_images(model, [image], "cpu", mode="slide", window=32, with_confidence=True, flip=True)
    # The entropy itself is one number for each pixel.
    assert max(sizes) <= 900 * 60 < 5 * 900 * 60


def test_whole_and_several_scales_come_as_whole_images(model):
    images = photographs(2, 3, 21, 26)
    for options in ({}, {"flip": True}, {"mode": "slide", "window": 16, "scales": (1.0, 0.5)}):
        expected = segment(model, normalize(images, None), **options)
        got = list(segment_rows(model, images, **options))
        assert [(image, first) for image, first, _ in got] == [(0, 0), (1, 0)]
        assert torch.equal(torch.stack([scores for *_, scores in got]), expected)


def test_a_pass_holds_windows_of_several_rows_and_images():
    counter = Pointwise().eval()
    segment(counter, torch.zeros(2, 3, 10, 9), mode="slide", window=5, stride=5, window_batch=3)
    assert [batch for batch, *_ in counter.sizes] == [3, 3, 2]


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"mode": "slide", "window": 16}, {"scales": (1.0, 0.75)}])
def test_ids_and_confidence_are_those_of_the_scores(model, options):
    images = photographs(2, 37, 29, 3)
    seen = []
    ids, confidence = predict_images(
        model, list(images.numpy()), "cpu", with_confidence=True, progress=seen.append, **options
    )
    scores = segment(model, normalize(images.permute(0, 3, 1, 2), None), **options).double().numpy()
    if options in ({}, {"mode": "slide", "window": 16}):
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    entropy = -(scores * np.log(np.maximum(scores, 1e-300))).sum(axis=1)
    assert np.array_equal(ids, scores.argmax(axis=1))
    np.testing.assert_allclose(confidence, 255 * (1 - entropy / np.log(5)), atol=0.5 + 1e-3)
    assert ids.dtype == confidence.dtype == np.uint8
    assert sum(seen) == ids.size
    assert predict_images(model, list(images.numpy()), "cpu", **options)[1] is None


def test_confidence_reaches_both_ends():
    ends = as_bytes(confidence_of(np.float32([0, np.log(4), np.nextafter(np.float32(np.log(4)), 9)]), 4))
    assert ends.tolist() == [255, 0, 0] and as_bytes(confidence_of(np.zeros(1), 1)).tolist() == [255]


def test_windows_are_counted_once_each():
    got = [
        (image, first, logits[0].clone())
        for image, first, logits in segmentation.slide_rows(
            WindowIndex(), torch.zeros(1, 3, 7, 4), window=4, stride=3, window_batch=1
        )
    ]
    assert [(image, first, len(rows)) for image, first, rows in got] == [(0, 0, 3), (0, 3, 4)]
    # Rows 0 to 3 see window 0, rows 3 to 6 window 1: row 3 their mean.
    assert [rows[:, 0].tolist() for *_, rows in got] == [[0, 0, 0], [0.5, 1, 1, 1]]
