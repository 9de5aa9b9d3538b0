import math

import numpy as np
import pytest
import torch

from u2pl_hf.method import pseudo_labels as pl


def test_entropy_closed_forms():
    logits = torch.zeros(1, 5, 2, 2, dtype=torch.float64)
    assert torch.allclose(pl.pixel_entropy(logits), torch.full((1, 2, 2), math.log(5), dtype=torch.float64))
    logits[:, 0] = 60.0
    assert (pl.pixel_entropy(logits) < 1e-20).all()
    two = torch.tensor([0.3, 0.7]).log().view(1, 2, 1, 1)
    assert pl.pixel_entropy(two).item() == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)), rel=1e-6)


def test_entropy_is_float32_for_half_precision_input():
    logits = (torch.randn(1, 4, 3, 3) * 20).half()
    assert pl.pixel_entropy(logits).dtype == torch.float32
    assert torch.allclose(pl.pixel_entropy(logits), pl.pixel_entropy(logits.float()))


@pytest.mark.parametrize("q", [0.0, 0.05, 0.37, 0.5, 0.8, 0.875, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile_equals_numpy(q, size, dtype):
    values = torch.randn(size, dtype=dtype)
    mask = torch.rand(size) < 0.6
    mask[0] = True
    expected = np.quantile(values[mask].double().numpy(), q)
    assert pl.masked_quantile(values, q, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_quantile_with_ties_and_infinite_outside_mask():
    values = torch.tensor([1.0, 1.0, 1.0, 2.0, math.inf, -math.inf])
    mask = torch.tensor([True, True, True, True, False, False])
    assert pl.masked_quantile(values, 0.5, mask) == 1.0
    assert pl.masked_quantile(values, 0.9, mask).item() == pytest.approx(np.quantile([1, 1, 1, 2], 0.9))


def test_quantile_of_nothing_is_nan():
    assert pl.masked_quantile(torch.randn(4), 0.8, torch.zeros(4, dtype=torch.bool)).isnan()


def test_quantile_beyond_float32_integers():
    values = torch.arange(17_000_000, dtype=torch.float64)
    mask = torch.ones_like(values, dtype=torch.bool)
    assert pl.masked_quantile(values, 0.9, mask).item() == pytest.approx(np.quantile(values.numpy(), 0.9), abs=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.05, 0.37, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_quantiles_equal_numpy(q, dtype):
    """Classes 0 and 5 are absent, 2 has one pixel, 3 two, 4 ties; padding has other values and no say."""
    values, labels = torch.randn(3, 9, 7, dtype=dtype), torch.ones(3, 9, 7, dtype=torch.int64)
    labels[0, :2], labels[1, 0, 0], labels[1, 0, 1:3], labels[1, 1:3], labels[2, 4:] = 255, 2, 3, 4, 1
    values[labels == 255] = torch.randn(14, dtype=dtype) * 100
    values[labels == 4] = values[labels == 4].round()
    found = pl.class_quantiles(values, labels, q, 6)
    assert found.dtype == dtype and found.isnan().tolist() == [True, False, False, False, False, True]
    for c in (1, 2, 3, 4):
        expected = np.quantile(values[labels == c].double().numpy(), q)
        assert found[c].item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_class_quantiles_of_padding_alone_and_of_one_class():
    values = torch.rand(2, 3, 3)
    assert pl.class_quantiles(values, torch.full((2, 3, 3), 255), 0.8, 3).isnan().all()
    one = pl.class_quantiles(values, torch.zeros(2, 3, 3, dtype=torch.int64), 0.8, 1)
    assert one.item() == pytest.approx(np.quantile(values.double().numpy(), 0.8), rel=1e-6)


@pytest.mark.parametrize("size", [(3, 4), (17, 9), (1, 5), (2, 2), (161, 130)])
@pytest.mark.parametrize("classes", [2, 15, 16])
def test_logits_are_resized_as_torch_does(classes, size):
    """Few classes are resized by matrix products on a CPU: the same numbers and gradients."""
    results = []
    for shape in ((2, classes, 7, 5), (2, classes, 1, 5)):
        logits = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        weights = torch.randn(2, classes, *size)
        for resize in (
            pl.resize_logits,
            lambda x, s: torch.nn.functional.interpolate(x, size=s, mode="bilinear", align_corners=True),
        ):
            own = logits.clone().requires_grad_()
            out = resize(own, size)
            (out * weights).sum().backward()
            results.append((out, own.grad))
        for found, right in zip(*results[-2:], strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_label_pixels_equal_a_loop():
    """At the size of the logits, and between their corners."""
    logits = torch.randn(2, 3, 3, 4)
    labels, prob = pl.label_pixels(logits, (5, 7))
    for b, y, x in np.ndindex(labels.shape):
        row, column = y * 2 / 4, x * 3 / 6
        top, left = min(int(row), 1), min(int(column), 2)
        corners = logits[b, :, top : top + 2, left : left + 2].double()
        down, right = torch.tensor([1 - row + top, row - top]), torch.tensor([1 - column + left, column - left])
        scores = torch.einsum("cyx,y,x->c", corners, down.double(), right.double()).softmax(0)
        assert labels[b, y, x] == scores.argmax() and prob[b, y, x].item() == pytest.approx(
            scores.max().item(), rel=1e-5
        )
    assert labels.dtype == torch.int64 and pl.label_pixels(logits.half(), (3, 4))[1].dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2, 1.0])
def test_split_by_entropy_equals_numpy(alpha):
    entropy, valid = torch.rand(3, 7, 5), torch.rand(3, 7, 5) < 0.7
    reliable, unreliable = pl.split_by_entropy(entropy, valid, alpha)
    gamma = np.percentile(entropy[valid].double().numpy(), 100 * (1 - alpha))
    gamma = torch.tensor(gamma, dtype=torch.float32)
    assert torch.equal(reliable, valid & (entropy < gamma))
    assert torch.equal(reliable | unreliable, valid)
    assert not (reliable & unreliable).any()


def test_split_without_valid_pixels():
    reliable, unreliable = pl.split_by_entropy(torch.rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool), 0.2)
    assert not reliable.any() and not unreliable.any()


@pytest.mark.parametrize(("n", "m"), [(6, 4), (10, 4), (97, 26), (65, 18), (4, 9), (1, 3), (8, 1)])
def test_nearest_on_corners_takes_the_nearest_pixel(n, m):
    """Sizes without ties: there the corners' grid in floating point says the same."""
    maps = torch.arange(n * 3).view(1, n, 3)
    rows = np.rint(np.linspace(0, n - 1, m)).astype(int)
    assert torch.equal(pl.nearest_on_corners(maps, (m, 3)), maps[:, rows])


def test_nearest_on_corners_takes_every_fourth_pixel():
    maps = torch.arange(513 * 17).view(1, 513, 17)
    assert torch.equal(pl.nearest_on_corners(maps, (129, 5)), maps[:, ::4, ::4])
    assert torch.equal(pl.nearest_on_corners(maps, (1, 1)), maps[:, :1, :1])


def naive_rank(prob: np.ndarray) -> np.ndarray:
    """Place of each class by counting the classes before it, ties by id."""
    classes = len(prob)
    return np.array(
        [sum(prob[j] > prob[c] or (prob[j] == prob[c] and j < c) for j in range(classes)) for c in range(classes)]
    )


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_top_classes_are_the_most_probable_in_order(classes):
    """Of equal probabilities any may come first, but each class comes once and their number is right."""
    prob = torch.randint(0, 6, (2, classes, 3, 4)).float()  # many ties
    for number in (0, 1, classes - 1, classes, classes + 5):
        top = pl.top_classes(prob, number)
        assert top.shape == (2, 3, 4, min(number, classes))
        values = prob.movedim(1, -1)
        assert np.array_equal(values.gather(-1, top).numpy(), -np.sort(-values.numpy(), axis=-1)[..., :number])
        marks = pl.mark_classes(top, torch.ones(2, 3, 4, dtype=torch.bool), classes)
        assert (marks.sum(1) == min(number, classes)).all()
        assert not pl.mark_classes(top, torch.zeros(2, 3, 4, dtype=torch.bool), classes).any()


@pytest.mark.parametrize(("classes", "low", "high"), [(2, 1, 20), (5, 2, 4), (21, 3, 20)])
def test_masks_equal_naive_loops(classes, low, high):
    shape = (3, 4)
    labels = torch.randint(0, classes, (2, *shape))
    labels[torch.rand(2, *shape) < 0.3] = 255
    prob = torch.randn(5, classes, *shape).mul(2).softmax(1)
    unreliable = torch.rand(3, *shape) < 0.5
    negatives = pl.negative_mask(labels, prob[:2], unreliable, prob[2:], low, high)
    anchors = pl.anchor_mask(labels, prob[:2], 0.3)
    assert negatives.shape == (5, classes, *shape) and negatives.dtype == torch.bool
    for b in range(5):
        for y in range(shape[0]):
            for x in range(shape[1]):
                ranks = naive_rank(prob[b, :, y, x].numpy())
                for c in range(classes):
                    if b < 2:
                        label = labels[b, y, x].item()
                        expected = label != c and label != 255 and ranks[c] < low
                        assert anchors[b, c, y, x] == (label == c and prob[b, c, y, x] > 0.3)
                    else:
                        expected = bool(unreliable[b - 2, y, x]) and low <= ranks[c] < high
                    assert negatives[b, c, y, x] == expected


@pytest.mark.parametrize(("classes", "rank"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (21, 3), (150, 3)])
def test_default_low_rank_leaves_negatives(classes, rank):
    assert pl.default_low_rank(classes) == rank < classes
