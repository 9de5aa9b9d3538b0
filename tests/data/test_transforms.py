import pickle

import numpy as np
import pytest
import torch

from u2pl_hf.constants import IMAGE_MEAN
from u2pl_hf.data.transforms import WeakAugmentation
from u2pl_hf.pixels import normalize


def test_scale_has_the_published_distribution():
    """Half of the draws uniform in [0.5, 1], half in [1, 2], seen in the area of the valid pixels."""
    augment = WeakAugmentation(401)
    image = np.full((200, 200, 3), 255, np.uint8)
    scales = np.array([augment(image, None, seed)["valid"].sum().sqrt().item() / 200 for seed in range(2000)])
    assert scales.min() >= 0.495 and scales.max() <= 2.005
    assert (scales < 1).mean() == pytest.approx(0.5, abs=0.04)
    small, large = scales[scales < 0.998], scales[scales > 1.002]
    assert np.quantile(small, [0.25, 0.5, 0.75]) == pytest.approx([0.625, 0.75, 0.875], abs=0.03)
    assert np.quantile(large, [0.25, 0.5, 0.75]) == pytest.approx([1.25, 1.5, 1.75], abs=0.06)


def test_flip_is_fair():
    augment = WeakAugmentation(32, scale_range=(1.0, 1.0))
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16] = 200
    flipped = [augment(image, None, seed)["pixel_values"][0, 0, -1] > 100 for seed in range(1000)]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.06)


def test_scale_flip_and_crop_are_independent():
    """Each alone can look right while one draw decides all of them: correlations of 1,000 samples (3 sigma is 0.1)."""
    rows, columns = np.mgrid[:256, :256].astype(np.uint8)
    image = np.dstack([rows, columns, rows])  # a pixel tells where it came from
    draws = []
    augment = WeakAugmentation(64)
    for seed in range(1000):
        crop = augment(image, None, seed)["pixel_values"].float()
        step = (crop[0, -1, 0] - crop[0, 0, 0]) / 63  # source pixels per crop pixel
        flipped = crop[1, 0, 0] > crop[1, 0, -1]
        room = 255 - 63 * step
        left = min(crop[1, 0, 0], crop[1, 0, -1])
        draws.append([1 / step, flipped, crop[0, 0, 0] / room, left / room])
    correlation = np.corrcoef(np.array(draws, dtype=float).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.12


def test_padding_is_even_mean_coloured_and_ignored():
    augment = WeakAugmentation(41, scale_range=(1.0, 1.0), flip=0.0)
    sample = augment(np.full((20, 30, 3), 7, np.uint8), np.full((20, 30), 3, np.uint8), seed=1)
    rows, columns = sample["valid"].any(1).nonzero().flatten(), sample["valid"].any(0).nonzero().flatten()
    assert len(rows) == 20 and len(columns) == 30
    assert rows[0].item() in (10, 11) and columns[0].item() in (5, 6)
    assert (sample["labels"][~sample["valid"]] == 255).all() and (sample["labels"][sample["valid"]] == 3).all()
    outside = sample["pixel_values"][:, ~sample["valid"]].float().mean(1) / 255
    assert outside.tolist() == pytest.approx(IMAGE_MEAN, abs=0.003)
    normal = normalize(sample["pixel_values"][None], sample["valid"][None])
    assert (normal[:, :, ~sample["valid"]] == 0).all() and (normal[:, :, sample["valid"]] != 0).all()


def test_image_and_label_move_together():
    rng = np.random.default_rng(0)
    label = np.repeat(np.repeat(rng.integers(0, 5, (8, 8), dtype=np.uint8), 8, 0), 8, 1)
    image = np.repeat(label[..., None] * 50, 3, axis=2)
    for seed in range(20):
        sample = WeakAugmentation(48)(image, label, seed)
        inside = sample["labels"] != 255
        assert torch.equal(inside, sample["valid"])
        # Bilinear and nearest sampling differ only next to an edge; a shift by half a cell would leave about 0.5.
        agree = (sample["pixel_values"][0].float() / 50).round()[inside] == sample["labels"][inside]
        assert agree.float().mean() > 0.8


def test_draws_depend_on_the_seed_alone():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    augment = WeakAugmentation(33)
    first = augment(image, None, 5)["pixel_values"]
    assert not torch.equal(first, augment(image, None, 6)["pixel_values"])
    assert torch.equal(first, augment(image, None, 5)["pixel_values"])
    assert torch.equal(first, pickle.loads(pickle.dumps(augment))(image, None, 5)["pixel_values"])
    # A label takes part without changing the draws of the image.
    assert torch.equal(first, augment(image, np.zeros((40, 50), np.uint8), 5)["pixel_values"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (33, 33), (300, 20)])
def test_any_size_gives_a_crop(shape):
    for seed in range(8):
        sample = WeakAugmentation(33)(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), seed)
        assert sample["pixel_values"].shape == (3, 33, 33) and sample["labels"].shape == sample["valid"].shape == (
            33,
            33,
        )


@pytest.mark.parametrize("shape", [(1, 60), (9, 40)])
def test_a_short_side_survives_the_smallest_scale(shape):
    """A tenth of nine pixels is less than one."""
    augment, image = WeakAugmentation(65, scale_range=(0.1, 2.0)), np.full((*shape, 3), 200, np.uint8)
    samples = [augment(image, np.ones(shape, np.uint8), seed) for seed in range(300)]
    assert all(torch.equal(sample["labels"] == 1, sample["valid"]) for sample in samples)
    assert any(sample["valid"].any() for sample in samples)


@pytest.mark.parametrize("side", [60, 97, 160])
def test_labels_lie_under_their_pixels_at_every_scale(side):
    """Each pixel holds its column, or its row, and its label too, rising or falling.

    A label that is moved is too low on the rising ramp and too high on the falling one; rounding is alike on both.
    """
    rising = np.tile(np.arange(side, dtype=np.uint8), (side, 1))
    augment = WeakAugmentation(49, flip=0.0)
    for axis in (0, 1):
        means = {1: [], -1: []}
        for seed in range(300):
            for way in means:
                ramp = np.ascontiguousarray(np.swapaxes(rising[:, ::way], 0, axis))
                sample = augment(np.dstack([ramp] * 3), ramp.copy(), seed)
                labels = sample["labels"].float()
                inside = sample["valid"] & (labels > 2) & (labels < side - 3)
                off = (sample["pixel_values"][0] - labels)[inside]
                means[way].append(off.mean().item() if inside.any() else 0.0)
                # A label stands for the pixel around its centre: half a pixel each way, and rounding.
                assert not inside.any() or off.abs().max() <= 1
        assert abs(np.mean(means[1]) - np.mean(means[-1])) / 2 < 0.03
