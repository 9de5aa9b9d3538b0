"""What makes an image worth a label, and the choice of unlike ones, against loops in numpy."""

import math

import numpy as np
import pytest
import torch

from u2pl_hf.method import acquisition

RNG = np.random.default_rng(0)


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def entropy_of(probability: np.ndarray) -> np.ndarray:
    return -(probability * np.log(np.clip(probability, 1e-300, None))).sum(1)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_unreliable_entropy_is_the_mean_above_the_quantile(alpha):
    entropy = RNG.random((13, 17))
    above = entropy >= np.quantile(entropy, 1 - alpha)
    pixels = acquisition.unreliable_pixels(torch.from_numpy(entropy), alpha)
    assert np.array_equal(pixels.numpy(), above)
    found = acquisition.unreliable_entropy(torch.from_numpy(entropy), alpha)
    assert found.item() == pytest.approx(entropy[above].mean(), rel=1e-12)


def test_where_all_pixels_are_alike_all_are_unreliable():
    assert acquisition.unreliable_entropy(torch.full((3, 4), 0.7), 0.2).item() == pytest.approx(0.7)
    assert acquisition.unreliable_entropy(torch.zeros(3, 4), 0.2).item() == 0


def test_divergence_is_that_of_probabilities():
    logits, others = 4 * RNG.standard_normal((2, 3, 5, 6, 7))
    p, q = softmax(logits), softmax(others)
    expected = entropy_of((p + q) / 2) - (entropy_of(p) + entropy_of(q)) / 2
    pair = torch.from_numpy(logits), torch.from_numpy(others)
    found = acquisition.view_divergence(*pair)
    assert np.allclose(found.numpy(), expected, atol=1e-12)
    assert torch.equal(found, acquisition.view_divergence(*pair[::-1]))
    # Equal predictions, and ones that share no class.
    assert acquisition.view_divergence(pair[0], pair[0]).abs().max() < 1e-12
    sure = torch.tensor([90.0, 0.0]).view(1, 2, 1, 1)
    assert acquisition.view_divergence(sure, sure.flip(1)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_rarity_is_the_mean_inverse_share():
    pixels = RNG.integers(50, 100, (6, 4))
    pixels[:, 3] = 0
    share = pixels.sum(0) / pixels.sum()
    # Of the three classes that are there each has as much of the mean, which is 1.
    weights = acquisition.class_weights(torch.from_numpy(pixels))
    assert np.allclose(weights[:3].numpy(), 1 / share[:3] / 3)
    rarity = acquisition.image_rarity(torch.from_numpy(pixels), weights).numpy()
    for image, found in zip(pixels, rarity, strict=True):
        painted = np.repeat(weights.numpy(), image)
        assert found == pytest.approx(painted.mean())
    assert (rarity * pixels.sum(1)).sum() / pixels.sum() == pytest.approx(1)


def test_stray_pixels_of_a_class_do_not_decide():
    """One of a million, and a class that has none, count as a thousandth."""
    weights = acquisition.class_weights(torch.tensor([[999_999, 1, 0]]))
    assert weights[1] == weights[2] == pytest.approx(1000 * weights[0].item(), rel=1e-5)


def test_a_single_class_is_not_rare():
    pixels = torch.tensor([[0, 12], [0, 700]])
    weights = acquisition.class_weights(pixels)
    assert weights[1] == 1 and acquisition.image_rarity(pixels, weights).tolist() == [1, 1]


def test_score_weighs_both_parts_alike():
    entropy, divergence, rarity = RNG.random((3, 9))
    expected = (entropy / entropy.mean() + divergence / divergence.mean()) / 2 * rarity
    parts = [torch.from_numpy(part) for part in (entropy, divergence, rarity)]
    assert np.allclose(acquisition.acquisition_score(*parts).numpy(), expected, rtol=1e-12)
    # A part that is 0 in all images says nothing.
    assert acquisition.acquisition_score(parts[0], torch.zeros(9), parts[2]).isfinite().all()
    assert acquisition.acquisition_score(torch.zeros(9), torch.zeros(9), parts[2]).tolist() == [0] * 9


def by_loops(features: np.ndarray, number: int, covered: np.ndarray) -> list[int]:
    chosen = [] if len(covered) else [0]
    while len(chosen) < min(number, len(features)):
        centres = [*covered, *features[chosen]]
        gaps = [min(math.dist(row, centre) for centre in centres) for row in features]
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(left, key=gaps.__getitem__))
    return chosen


@pytest.mark.parametrize(("number", "covered"), [(1, 0), (8, 0), (8, 5), (40, 0), (99, 3)])
def test_k_centre_is_that_of_loops(number, covered):
    features, start = RNG.standard_normal((40, 6)), RNG.standard_normal((covered, 6))
    found = acquisition.k_centre_greedy(torch.from_numpy(features), number, torch.from_numpy(start))
    assert found == by_loops(features, number, start) and len(set(found)) == min(number, 40)


def test_of_equal_images_the_first_are_chosen_each_once():
    same = torch.full((5, 3), 0.3)
    assert acquisition.k_centre_greedy(same, 3, same[:0]) == [0, 1, 2]
    assert acquisition.k_centre_greedy(same, 9, same[:1]) == [0, 1, 2, 3, 4]
