"""Two real processes on one machine."""

from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.method.test_step import make_batch, make_settings, make_student
from tests.training.distributed import on_two_processes
from u2pl_hf.method.u2pl import U2PL


def gradients(distributed: bool = False) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of one semi-supervised step from a fixed seed, and the keys pushed per class.

    With one key per class and process, draws from the queues do not matter.
    """
    torch.manual_seed(0)
    student = make_student()
    step = U2PL(make_settings(new_keys_per_class=1, contrastive_weight=5.0), student)
    batch = make_batch()
    torch.manual_seed(1)
    output = step(DistributedDataParallel(student) if distributed else student, batch, step=3, total_steps=40)
    assert output.named["loss_contrastive"] > 0
    output.total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}, step.queues.pushed


def _same_batch_on_both(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.save(gradients(distributed=True), folder / f"{rank}.pt")


def test_two_equal_processes_have_the_gradient_of_one(tmp_path):
    """A loss that is divided by the number of processes before backward would be averaged twice."""
    on_two_processes(_same_batch_on_both, tmp_path)
    expected, pushed = gradients()
    for rank in range(2):
        found, pushed_by_both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert pushed_by_both.tolist() == (2 * pushed).tolist() and pushed.sum() > 0
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
