"""Consistency where the teacher is sure, and the reverse cross-entropy, against loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from u2pl_hf.method import losses


def sure_and_reverse(logits, targets, confidence, valid, threshold, weight) -> float:
    """L_u of FixMatch, pixel by pixel, with the reverse cross-entropy as its sum over classes."""
    total, counted = 0.0, 0
    for b, y, x in np.ndindex(targets.shape):
        counted += bool(valid[b, y, x])
        if valid[b, y, x] and targets[b, y, x] != 255 and confidence[b, y, x] >= threshold:
            scores = np.exp(logits[b, :, y, x] - logits[b, :, y, x].max())
            prob = scores / scores.sum()
            truth = [float(c == targets[b, y, x]) for c in range(len(prob))]
            total -= math.log(prob[targets[b, y, x]])
            total -= weight * sum(q * math.log(max(t, 1e-4)) for q, t in zip(prob, truth, strict=True))
    return total / max(counted, 1)


@pytest.mark.parametrize(("images", "classes"), [(2, 4), (1, 3), (1, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_confidence_loss_equals_a_loop(images, classes, weight):
    logits = torch.randn(images, classes, 4, 5, dtype=torch.float64) * 3
    targets = torch.randint(0, classes, (images, 4, 5))
    targets[:, 0, :3] = 255  # valid, but nothing to learn: counts in the denominator
    confidence, valid = torch.rand(images, 4, 5, dtype=torch.float64), torch.rand(images, 4, 5) < 0.7
    valid[:, 0, :3] = True
    confidence[:, 2, 1:3], confidence[:, 2, 3:] = 0.6, 0.6 - 1e-12  # at the threshold counts
    valid[:, 2] = True
    arrays = [t.numpy() for t in (logits, targets, confidence, valid)]
    for threshold in (0.0, 0.6, 0.95):
        loss = losses.confidence_loss(logits, targets, confidence, valid, threshold, symmetric=weight)
        assert loss.item() == pytest.approx(sure_and_reverse(*arrays, threshold, weight), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("state", ["all padding", "nothing sure", "nothing to learn"])
def test_confidence_loss_of_nothing_is_zero_with_gradient(state):
    logits, targets = torch.randn(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, dtype=torch.int64)
    valid, confidence = torch.full((1, 2, 2), state != "all padding"), torch.full((1, 2, 2), 0.9)
    if state == "nothing to learn":
        targets.fill_(255)
    threshold = 0.91 if state == "nothing sure" else 0.5
    loss = losses.confidence_loss(logits, targets, confidence, valid, threshold, symmetric=0.1)
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_symmetric_losses_equal_a_loop_and_the_closed_form(weight):
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 5))
    labels[0, 1] = 255
    found = losses.symmetric_losses(logits, labels, weight)
    assert torch.equal(found == 0, labels.flatten() == 255)
    prob = logits.detach().softmax(1).gather(1, labels.clamp(max=3).unsqueeze(1)).flatten()
    expected = -prob.log() - weight * math.log(1e-4) * (1 - prob)
    torch.testing.assert_close(found.detach(), expected.masked_fill(labels.flatten() == 255, 0))
    found.sum().backward()
    # d/dz of 9.21 (1 - q_y) is -9.21 q_y (1[c = y] - q_c), of the cross-entropy q_c - 1[c = y].
    one_hot = torch.nn.functional.one_hot(labels.clamp(max=3), 4).movedim(-1, 1)
    gradient = (logits.detach().softmax(1) - one_hot) * (1 - weight * math.log(1e-4) * prob.view(2, 1, 3, 5))
    torch.testing.assert_close(logits.grad, gradient * (labels != 255).unsqueeze(1))


def test_unsupervised_loss_with_the_reverse_cross_entropy_equals_a_loop():
    logits, pseudo_labels = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 3, (2, 4, 4))
    reliable = torch.rand(2, 4, 4) < 0.4
    ones = torch.ones(2, 4, 4)
    arrays = [t.numpy() for t in (logits, pseudo_labels, ones, reliable)]
    # Two divisions by the number of reliable pixels, one of which the weight of all pixels over them is.
    expected = sure_and_reverse(*arrays, 0.0, 0.1) * 32 / reliable.sum().item()
    found = losses.unsupervised_loss(logits, pseudo_labels, reliable, symmetric=0.1)
    assert found.item() == pytest.approx(expected, rel=1e-6)
