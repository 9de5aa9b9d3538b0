"""Distribution alignment against its formula in numpy, float64."""

import numpy as np
import pytest
import torch

from u2pl_hf.method.alignment import Alignment

COUNTS = torch.tensor([[50, 30, 0, 0], [10, 2, 8, 0]])


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def test_shares_move_as_their_average_does_and_padding_has_no_say():
    alignment, expected = Alignment(1.0, COUNTS), None
    generator = torch.Generator().manual_seed(0)
    for batch in range(4):
        logits = torch.randn(2, 4, 3, 5, generator=generator) * 3
        # Every other row of the crop is one of the map: (6 - 1) / 2 = 2.5 and (9 - 1) / 4 = 2 apart.
        valid = torch.rand(2, 6, 9, generator=generator) < 0.7
        seen = valid[:, [0, 3, 5]][:, :, ::2].numpy()
        prob = softmax(logits.double().numpy())
        share = np.array([prob[:, c][seen].mean() for c in range(4)])
        expected = share if batch == 0 else 0.99 * expected + 0.01 * share
        alignment.learn(logits, valid)
        np.testing.assert_allclose(alignment.predicted.numpy(), expected, rtol=1e-5)
        alignment.learn(logits, torch.zeros_like(valid))
        alignment.learn(torch.full_like(logits, torch.nan), valid)
        np.testing.assert_allclose(alignment.predicted.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_probabilities_become_the_formulas(strength):
    """Labels have 0.6, 0.32, 0.08 and 0 of the classes; the teacher's shares lie above, below, far below, and at 0."""
    alignment = Alignment(strength, COUNTS)
    alignment.predicted.copy_(torch.tensor([0.8, 0.19, 0.01, 0.0]))
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    factors = [0.601 / 0.801, 0.321 / 0.191, 4.0, 1.0]
    expected = softmax(logits.numpy()) * np.array(factors).reshape(1, 4, 1, 1) ** strength
    expected /= expected.sum(1, keepdims=True)
    found = alignment.align(logits)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.softmax(1).numpy(), expected, rtol=1e-6)
    assert alignment.align(logits.bfloat16()).dtype == torch.float32


def test_a_class_without_labels_becomes_rarer_by_a_quarter_at_most():
    alignment = Alignment(1.0, COUNTS)
    alignment.predicted.copy_(torch.tensor([0.5, 0.25, 0.05, 0.2]))
    shift = alignment.align(torch.zeros(1, 4, 1, 1)).flatten()
    assert shift[3].item() == pytest.approx(np.log(0.25))


def test_what_is_as_frequent_as_its_labels_stays():
    """Two classes, half and half on both sides."""
    alignment = Alignment(1.0, torch.tensor([[7, 7]]))
    alignment.learn(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    assert alignment.predicted.tolist() == [0.5, 0.5]
    logits = torch.randn(1, 2, 2, 2)
    assert torch.equal(alignment.align(logits), logits)


def test_passes_of_a_step_move_shares_as_one_does():
    """Of two passes each moves them by half as much, to first order."""
    one, two = Alignment(1.0, COUNTS), Alignment(1.0, COUNTS, passes=2)
    old, new = torch.randn(2, 2, 4, 3, 3).unbind()
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    for alignment, times in ((one, 1), (two, 2)):
        alignment.learn(old, valid)
        for _ in range(times):
            alignment.learn(new, valid)
    torch.testing.assert_close(one.predicted, two.predicted, rtol=1e-6, atol=0)
