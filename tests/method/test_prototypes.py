"""Positives that are averaged over steps."""

import numpy as np
import pytest
import torch

from u2pl_hf.method.prototypes import Prototypes


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def steps(number: int, classes: int = 4, channels: int = 5):
    """Representations and masks; class 3 never occurs, class 1 only in every third step, beginning with the second."""
    for k in range(number):
        mask = torch.rand(2, classes, 3, 4) < 0.3
        mask[:, 3] = False
        mask[:, 1] = mask[:, 1] & (k % 3 == 1)
        mask[0, 0, 0, 0] = mask[0, 2, 0, 0] = True
        mask[0, 1, 1, 1] = k % 3 == 1
        yield torch.randn(2, channels, 3, 4) + 2, mask


@pytest.mark.parametrize("momentum", [0.6, 0.999])
def test_prototypes_equal_a_loop_over_steps(momentum):
    """z <- d z + (1 - d) mean with d = min(1 - 1/i, momentum), i the steps that had the class; absent ones wait."""
    prototypes, expected, seen = Prototypes(4, 5, momentum), np.zeros((4, 5)), np.zeros(4, int)
    for representation, mask in steps(8):
        found = prototypes.update(representation, mask)
        pixels = representation.double().numpy()
        for c in range(4):
            own = [pixels[b, :, y, x] for b, y, x in np.argwhere(mask[:, c].numpy())]
            if own:
                seen[c] += 1
                decay = min(1 - 1 / seen[c], momentum)
                expected[c] = unit(decay * expected[c] + (1 - decay) * unit(np.mean(own, axis=0)))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert prototypes.updates.tolist() == seen.tolist() == [8, 3, 8, 0]
    np.testing.assert_allclose(found.norm(dim=1).numpy(), [1, 1, 1, 0], atol=1e-6)


def test_nothing_gets_gradients_and_all_is_in_a_checkpoint():
    prototypes = Prototypes(4, 5)
    representation, mask = next(steps(1))
    found = prototypes.update(representation.requires_grad_(), mask)
    assert not found.requires_grad and not list(prototypes.parameters())
    assert set(prototypes.state_dict()) == {"vectors", "updates"}


def test_what_is_not_finite_is_left_out():
    prototypes = Prototypes(4, 5)
    (first, mask), (second, _) = steps(2)
    before = prototypes.update(first, mask).clone()
    second[:, 2] = torch.inf
    assert torch.equal(prototypes.update(second, mask), before) and prototypes.updates.max() == 1


def test_half_precision_and_autocast_are_summed_in_float32():
    (representation, mask), = steps(1)  # fmt: skip
    found = []
    for given in (representation.half(), representation.half().float()):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(Prototypes(4, 5).update(given, mask))
    assert torch.equal(*found) and found[0].dtype == torch.float32
