from collections import deque
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.training.distributed import on_two_processes
from u2pl_hf.method.queues import ClassQueues, gather_keys, select_keys


@pytest.mark.parametrize("seed", range(5))
def test_queues_equal_deques(seed):
    """Random pushes, over-full ones and wrap-around among them."""
    torch.manual_seed(seed)
    lengths = [7, 3, 1, 12]
    queues, model = ClassQueues(lengths, 4, dtype=torch.float32), [deque(maxlen=n) for n in lengths]
    for _ in range(20):
        keys = torch.randn(4, int(torch.randint(1, 12, ())), 4)
        valid = torch.rand(keys.shape[:2]) < 0.5
        queues.push(keys, valid)
        for c in range(4):
            model[c].extend(F.normalize(keys[c], dim=-1)[valid[c]])
    for c in range(4):
        assert torch.equal(queues.oldest_first(c), torch.stack(list(model[c])))
    assert queues.fill.tolist() == [len(m) for m in model]


def test_sampling_is_uniform_and_within_the_class():
    queues = ClassQueues([4, 5, 3], 2, dtype=torch.float32)
    angles = torch.tensor([[0.1, 0.2, 0.3], [1.1, 1.2, 1.3], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True] * 3, [True, False, True], [False] * 3])
    queues.push(torch.stack([angles.cos(), angles.sin()], -1), valid)
    sample = queues.storage[queues.draw(torch.arange(3), 30_000)]
    drawn = torch.atan2(sample[..., 1], sample[..., 0])
    shares = [(drawn[0] - a).abs().lt(1e-4).float().mean().item() for a in (0.1, 0.2, 0.3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)
    shares = [(drawn[1] - a).abs().lt(1e-4).float().mean().item() for a in (1.1, 1.3)]
    assert shares == pytest.approx([1 / 2] * 2, abs=0.02)
    assert not sample[2].any()


def test_keys_are_stored_as_unit_vectors_in_half_precision():
    queues = ClassQueues([4], 8)
    key = torch.randn(1, 1, 8) * 1e6
    queues.push(key, torch.ones(1, 1, dtype=torch.bool))
    stored = queues.storage[queues.draw(torch.arange(1), 1)[0, 0]]
    assert stored.dtype == torch.float16
    assert torch.allclose(stored.float(), F.normalize(key[0, 0], dim=0), atol=1e-3)


def test_selected_keys_are_a_uniform_subset():
    representation = torch.arange(20.0).view(1, 1, 4, 5)
    mask = torch.zeros(1, 3, 4, 5, dtype=torch.bool)
    mask[0, 0].view(-1)[[2, 3, 5, 7]] = True
    mask[0, 1].view(-1)[:2] = True
    counts = torch.zeros(20)
    for _ in range(2000):
        keys, valid = select_keys(representation, mask, 3)
        assert valid.tolist() == [[True] * 3, [True, True, False], [False] * 3]
        chosen = keys[0, :, 0].long()
        assert len(set(chosen.tolist())) == 3
        counts[chosen] += 1
        assert set(keys[1, :2, 0].tolist()) == {0.0, 1.0}
    assert counts.nonzero().flatten().tolist() == [2, 3, 5, 7]
    assert ((counts[[2, 3, 5, 7]] - 1500).abs() < 120).all()


def test_bound_above_the_number_of_pixels():
    keys, valid = select_keys(torch.randn(1, 2, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool), 100)
    assert keys.shape == (1, 4, 2) and valid.all()


def _push_on_one_of_two(folder: Path) -> None:
    """Uneven pushes: process 0 has none in the second round."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    queues = ClassQueues([5, 9], 4, dtype=torch.float32)
    for round_ in range(2):
        valid = torch.rand(2, 3) < 0.7 if round_ == 0 or rank == 1 else torch.zeros(2, 3, dtype=torch.bool)
        queues.push(*gather_keys(torch.randn(2, 3, 4), valid))
    torch.save(queues.state_dict(), folder / f"{rank}.pt")


def test_queues_are_equal_on_all_processes(tmp_path):
    on_two_processes(_push_on_one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["pushed"].sum() > 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_are_left_out(poison):
    queues = ClassQueues([3, 3], 2)
    keys = torch.tensor([[[1.0, 0.0], [poison, 1.0], [0.0, 1.0]], [[poison, poison]] * 3])
    queues.push(keys, torch.ones(2, 3, dtype=torch.bool))
    assert queues.fill.tolist() == [2, 0]
    assert torch.equal(queues.oldest_first(0).float(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert queues.storage.isfinite().all()


def test_no_row_is_written_twice_by_one_push():
    """A CPU writes in order and would hide it."""
    queues = ClassQueues([3, 7, 2], 4)
    for _ in range(5):
        valid = torch.rand(3, 9) < 0.8
        rows = queues.rows(valid)
        written = rows[rows < len(queues.storage) - 1]
        assert len(written) == len(written.unique()) == torch.minimum(valid.sum(1), queues.capacity).sum()
        queues.push(torch.randn(3, 9, 4), valid)
