"""Strong views against PIL, colorsys and loops of our own; what is drawn, against its distribution."""

import colorsys
import itertools
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from u2pl_hf.constants import IMAGE_MEAN, IMAGE_STD
from u2pl_hf.method import views

# Chi-square that is exceeded once in a thousand times, by degrees of freedom; the seeds are fixed.
LIMITS = {1: 10.83, 3: 16.27, 7: 24.32, 9: 27.88, 15: 37.70, 23: 49.73}
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))


def assert_frequencies(counts, expected) -> None:
    counts, expected = np.asarray(counts, float), np.broadcast_to(expected, np.shape(counts))
    assert ((counts - expected) ** 2 / expected).sum() < LIMITS[len(counts) - 1]


def assert_uniform(values, low: float, high: float) -> None:
    values = np.asarray(values)
    assert values.min() >= low and values.max() <= high
    assert_frequencies(np.histogram(values, 10, (low, high))[0], len(values) / 10)


def adjust(pixels, *, factors=(1.0, 1.0, 1.0), turn=0.0, order=(0, 1, 2, 3)):
    """One image (3,H,W)."""
    factors, order = torch.tensor(factors).unsqueeze(1), torch.tensor(order).unsqueeze(1)
    return views.adjust_colours(pixels.unsqueeze(0), factors, torch.tensor([turn]), order)[0]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.5])
@pytest.mark.parametrize(
    ("place", "kind"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_brightness_contrast_and_saturation_are_those_of_pil(place, kind, factor):
    image = (np.random.default_rng(3).random((11, 7, 3)) * [255, 200, 90]).astype(np.uint8)
    expected = torch.from_numpy(np.asarray(kind(Image.fromarray(image)).enhance(factor)).copy()).movedim(-1, 0)
    factors = [1.0, 1.0, 1.0]
    factors[place] = factor
    found = adjust(torch.from_numpy(image).movedim(-1, 0) / 255, factors=factors)
    # PIL rounds the grey, its mean and the result to whole numbers.
    assert (found * 255 - expected).abs().max() < 1.6


def naive_colours(pixels: np.ndarray, factors, turn: float, order) -> np.ndarray:
    """(H,W,3), pixel by pixel."""
    pixels = pixels.copy()
    for operation in order:
        greys = pixels @ [0.299, 0.587, 0.114]
        mean = greys.mean()
        for y, x in np.ndindex(greys.shape):
            if operation == 3:
                hue, saturation, value = colorsys.rgb_to_hsv(*pixels[y, x])
                pixels[y, x] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            else:
                other = (0.0, mean, greys[y, x])[operation]
                changed = [factors[operation] * v + (1 - factors[operation]) * other for v in pixels[y, x]]
                pixels[y, x] = [min(max(v, 0.0), 1.0) for v in changed]
    return pixels


def test_colours_change_in_any_order_as_in_a_loop():
    """All 24 orders in one batch, with clamping after each operation, grey pixels and pixels with equal channels."""
    orders = list(itertools.permutations(range(4)))
    pixels = torch.rand(24, 3, 4, 5, dtype=torch.float64)
    pixels[:, :, 0] = pixels[:, :1, 0]
    pixels[:, 1, 1], pixels[:, :, 2, 0], pixels[:, :, 2, 1] = pixels[:, 2, 1], 0.0, 1.0
    factors, turns = torch.empty(3, 24).uniform_(0.5, 1.5), torch.empty(24).uniform_(-0.25, 0.25)
    found = views.adjust_colours(pixels, factors, turns, torch.tensor(orders).t())
    for b, order in enumerate(orders):
        image = pixels[b].movedim(0, -1).numpy()
        expected = naive_colours(image, factors[:, b].double().tolist(), turns[b].item(), order)
        np.testing.assert_allclose(found[b].movedim(0, -1).numpy(), expected, atol=1e-6)
    # There is something to clamp, and the order matters.
    assert (found == 1).any() and len({views.adjust_colours(pixels[:1], factors[:, :1], turns[:1],
        torch.tensor(o).view(4, 1)).sum().item() for o in orders}) > 6  # fmt: skip


@pytest.mark.parametrize("turn", [-0.25, -0.1, 0.0, 0.2, 0.25, 1 / 3])
def test_hue_is_that_of_colorsys(turn):
    steps = np.linspace(0, 1, 6)
    colours = np.array([c for c in itertools.product(steps, steps, steps)])
    expected = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*c) for c in colours)]
    found = views.turn_hue(torch.from_numpy(colours.T.copy()).view(1, 3, 1, -1), torch.tensor([turn]))
    np.testing.assert_allclose(found[0, :, 0].T.numpy(), expected, atol=1e-6)


def test_a_red_pixel_turned_by_a_third_is_green():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(views.turn_hue(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("shape", [(9, 14), (3, 2), (1, 1)])
def test_blur_equals_a_naive_kernel(shape):
    pixels, sigmas = torch.rand(3, 3, *shape, dtype=torch.float64), [0.1, 0.7, 2.0]
    found = views.gaussian_blur(pixels, torch.tensor(sigmas))
    radius = 6
    for b, sigma in enumerate(sigmas):
        weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-radius, radius + 1)]
        kernel = np.outer(weights, weights) / sum(weights) ** 2
        for c in range(3):
            padded = np.pad(pixels[b, c].numpy(), radius, mode="edge")
            for y, x in np.ndindex(shape):
                expected = (padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1] * kernel).sum()
                assert found[b, c, y, x].item() == pytest.approx(expected, abs=1e-6)


def spied(monkeypatch, name: str) -> list[tuple]:
    """What a function of the module is called with; it still does its work."""
    calls, real = [], getattr(views, name)

    def spy(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(views, name, spy)
    return calls


def test_what_jitter_draws(monkeypatch):
    calls = spied(monkeypatch, "adjust_colours")
    views.colour_jitter(torch.rand(4800, 3, 1, 1), torch.Generator().manual_seed(1))
    ((_, factors, turns, order),) = calls
    for drawn in factors:
        assert_uniform(drawn, 0.5, 1.5)
    assert_uniform(turns, -0.25, 0.25)
    counts = [sum(tuple(o) == p for o in order.t().tolist()) for p in itertools.permutations(range(4))]
    assert_frequencies(counts, 4800 / 24)
    # Each image has draws of its own.
    assert abs(np.corrcoef(torch.cat([factors, turns[None]]).numpy()) - np.eye(4)).max() < 0.05


def test_how_often_an_image_is_jittered_grey_and_blurred(monkeypatch):
    """A spot on a colour of its own: its surroundings tell blur, its distant colour the rest."""
    monkeypatch.setattr(views, "SIGMA", (1.0, 2.0))  # blur by less may not show
    pixels = torch.tensor([0.5, 0.35, 0.3]).view(1, 3, 1, 1).repeat(4000, 1, 16, 1)
    pixels[:, :, 0] += 0.2
    found = views.strong_view((pixels - MEAN) / STD, torch.Generator().manual_seed(2)) * STD + MEAN
    far, near = found[:, :, -1, 0], found[:, :, 1, 0]
    blurred = (far - near).abs().amax(1) > 1e-3
    grey = far.amax(1) - far.amin(1) < 1e-4
    untouched = torch.where(grey, pixels.new_tensor(0.5 * 0.299 + 0.35 * 0.587 + 0.3 * 0.114), pixels[:, 0, -1, 0])
    jittered = (far[:, 0] - untouched).abs() > 1e-4
    counts = torch.bincount(4 * jittered + 2 * grey + blurred, minlength=8)
    shares = [j * g * b for j in (0.2, 0.8) for g in (0.8, 0.2) for b in (0.5, 0.5)]
    assert_frequencies(counts, [4000 * share for share in shares])


def test_deviation_of_blur_is_uniform(monkeypatch):
    calls = spied(monkeypatch, "gaussian_blur")
    views.strong_view(torch.zeros(4000, 3, 1, 1), torch.Generator().manual_seed(3))
    assert_uniform(calls[0][1], 0.1, 2.0)


def test_the_same_seed_gives_the_same_view_and_equal_images_get_different_ones():
    images = torch.randn(1, 3, 9, 9).expand(8, -1, -1, -1)
    first, second, other = (views.strong_view(images, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert len({view.sum().item() for view in first}) > 5
    torch.manual_seed(4)
    assert torch.equal(views.strong_view(images), first)
    assert torch.equal(images, images[:1].expand_as(images))


def test_a_view_does_not_move_pixels():
    images = torch.zeros(64, 3, 15, 15)
    places = [(7, 7), (2, 12), (12, 3), (14, 0)]
    for b in range(64):
        images[b][:, places[b % 4][0], places[b % 4][1]] = 1.5
    found = views.strong_view(images, torch.Generator().manual_seed(6))
    background = found[:, :, 7, 1].unsqueeze(-1).unsqueeze(-1)
    spots = (found - background).abs().sum(1).flatten(1).argmax(1)
    assert [divmod(int(spot), 15) for spot in spots] == [places[b % 4] for b in range(64)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    images = torch.randn(6, 3, 9, 8).to(dtype)
    found, expected = (views.strong_view(x, torch.Generator().manual_seed(1)) for x in (images, images.float()))
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


def test_memory_layout_and_other_images_of_a_batch_do_not_matter():
    images = torch.randn(5, 3, 12, 10)
    found, laid_out = (views.strong_view(x, torch.Generator().manual_seed(8))
                       for x in (images, images.to(memory_format=torch.channels_last)))  # fmt: skip
    torch.testing.assert_close(found, laid_out, rtol=1e-5, atol=1e-5)
    changed = images.clone()
    changed[1:] = 0.3
    found_first = views.strong_view(changed, torch.Generator().manual_seed(8))[0]
    torch.testing.assert_close(found_first, found[0], rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_is_sometimes_left_as_it_is():
    images, seeds = torch.randn(1, 3, 6, 6).clamp(-1, 1), range(60)
    found = [views.strong_view(images, torch.Generator().manual_seed(seed)) for seed in seeds]
    same = [torch.allclose(view, images, atol=1e-5) for view in found]
    assert all(view.isfinite().all() and view.shape == images.shape for view in found)
    assert 0 < sum(same) < 20  # 0.2 x 0.8 x 0.5 of all, and blur that is too little to show


# CutMix


def naive_box(size: int, draw: random.Random) -> tuple[int, int, int, int]:
    """As the published code draws it: area, then ratio and corner until the box lies inside."""
    area = draw.uniform(0.02, 0.4) * size * size
    while True:
        ratio = draw.uniform(0.3, 1 / 0.3)
        width, height = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        x, y = draw.randrange(size), draw.randrange(size)
        if x + width <= size and y + height <= size:
            return y, x, height, width


def test_boxes_are_distributed_as_those_of_the_published_loop():
    number, size, draw = 4000, 400, random.Random(0)
    found = views.cutmix_boxes(number, size, size, 1.0, torch.Generator().manual_seed(9)).numpy()
    expected = np.array([naive_box(size, draw) for _ in range(number)])
    assert_uniform(found[:, 2] * found[:, 3] / size**2, 0.0185, 0.4)

    def seen(boxes):
        top, left, height, width = boxes.T
        return top, left, height, width, height / width, top + height, left + width

    for mine, theirs in zip(seen(found), seen(expected), strict=True):
        edges = np.unique(np.quantile(theirs, np.linspace(0, 1, 11))[1:-1])
        ours, other = (np.bincount(np.digitize(v, edges), minlength=10) for v in (mine, theirs))
        assert ((ours - other) ** 2 / (ours + other)).sum() < LIMITS[9]


@pytest.mark.parametrize(("height", "width"), [(40, 90), (33, 33), (2, 3), (1, 1)])
def test_boxes_lie_inside_with_their_share_and_ratio(height, width):
    boxes = views.cutmix_boxes(500, height, width, 1.0, torch.Generator().manual_seed(1))
    top, left, box_h, box_w = boxes.unbind(1)
    assert boxes.dtype == torch.int64 and (boxes >= 0).all()
    assert (top + box_h <= height).all() and (left + box_w <= width).all()
    # Rounding down takes up to a pixel off each side.
    assert (box_h * box_w <= 0.4 * height * width).all()
    assert ((box_h + 1) * (box_w + 1) >= 0.02 * height * width).all()
    if min(height, width) > 30:
        assert (box_h / (box_w + 1) <= 1 / 0.3).all() and ((box_h + 1) / box_w >= 0.3).all()
        assert (top + box_h == height).any() and (left + box_w == width).any()


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_each_image_has_a_draw_of_its_own_whether_it_is_mixed(probability):
    generator = torch.Generator().manual_seed(5)
    mixed = torch.stack([views.cutmix_boxes(2, 20, 20, probability, generator)[:, 2] > 0 for _ in range(1500)])
    counts = torch.bincount(2 * mixed[:, 0] + mixed[:, 1], minlength=4)
    p = probability
    if p in (0, 1):
        assert counts.tolist() == ([1500, 0, 0, 0] if p == 0 else [0, 0, 0, 1500])
    else:
        assert_frequencies(counts, [1500 * share for share in ((1 - p) ** 2, p * (1 - p), p * (1 - p), p * p)])


def test_an_image_that_is_not_mixed_has_no_box_at_all():
    boxes = views.cutmix_boxes(200, 30, 30, 0.5, torch.Generator().manual_seed(2))
    assert ((boxes == 0).all(1) == (boxes[:, 2] == 0)).all()
    assert torch.equal(boxes, views.cutmix_boxes(200, 30, 30, 0.5, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("type_of", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(type_of):
    images = (torch.rand(16, 3, 12, 10) - MEAN) / STD
    expected = views.strong_view(images, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", type_of):
        assert torch.equal(views.strong_view(images, torch.Generator().manual_seed(0)), expected)
