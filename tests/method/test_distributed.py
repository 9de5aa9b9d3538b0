"""Two real processes on one machine."""

import socket

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.method.test_step import make_batch, make_settings, make_student
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


def _same_batch_on_both(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(gradients(distributed=True), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_equal_processes_have_the_gradient_of_one(tmp_path):
    """A loss that is divided by the number of processes before backward would be averaged twice."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_same_batch_on_both, (port, str(tmp_path)), nprocs=2)
    expected, pushed = gradients()
    for rank in range(2):
        found, pushed_by_both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert pushed_by_both.tolist() == (2 * pushed).tolist() and pushed.sum() > 0
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
