"""Gradient checkpointing and compilation under DistributedDataParallel, in two real processes."""

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from tests.method.test_step import make_batch, make_settings, make_student
from tests.training.distributed import on_two_processes
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.system import precision
from u2pl_hf.training.build import tune_networks
from u2pl_hf.training.optimizers import build_sgd
from u2pl_hf.training.recipe.arguments import run_arguments


def train(rank: int, steps: int = 3, **changes) -> tuple[dict[str, Tensor], list[int]]:
    """Weights after some steps, and the number of compiled graphs after each."""
    torch.manual_seed(0)
    student = make_student()
    method = U2PL(make_settings(new_keys_per_class=1, contrastive_weight=5.0), student)
    optimizer = build_sgd([{"params": list(student.parameters())}], lr=0.01, momentum=0.9, weight_decay=1e-4)
    wrapped = DistributedDataParallel(student)
    tune_networks(run_arguments(**changes), student, method)
    graphs = []
    for step in range(steps):
        torch.manual_seed(10 * step + rank)
        method(wrapped, make_batch(), step, total_steps=10).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.finish(student, step)
        graphs.append(counters["stats"]["unique_graphs"])
    return student.state_dict(), graphs


def _compare() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    expected, _ = train(rank)
    assert all(value.isfinite().all() for value in expected.values())
    found, _ = train(rank, gradient_checkpointing=True)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    precision.COMPILER = "eager"
    found, graphs = train(rank, compile=True)
    assert graphs[0] == graphs[-1] == 3, graphs
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_checkpointed_and_compiled_students_learn_the_same_in_two_processes():
    on_two_processes(_compare)
