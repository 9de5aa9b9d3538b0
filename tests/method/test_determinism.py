"""Every operation of a step against the list of those that torch.use_deterministic_algorithms refuses on a GPU.

Without a GPU nothing is refused, so the operations are recorded and looked up in that function's documentation.
"""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.method.test_fixmatch import make_step as make_fixmatch_step
from tests.method.test_step import make_batch, make_settings, make_student
from tests.method.test_u2pl_options import EVERYTHING
from tests.method.test_u2pl_options import make_step as make_options_step
from u2pl_hf.evaluation import MeanIoU
from u2pl_hf.method.fixmatch import FixMatch
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.unimatch_v2 import UniMatchV2

REFUSED = {
    "_adaptive_avg_pool2d_backward", "_ctc_loss_backward", "adaptive_max_pool2d_backward", "grid_sampler_2d_backward",
    "histc", "kthvalue", "max_unpool2d", "median", "nanmedian", "put_", "reflection_pad2d_backward", "scatter_reduce",
}  # fmt: skip


def is_refused(name: str, args: tuple) -> bool:
    """Whether an operation raises on a GPU: some do so with certain arguments only."""
    if name == "nll_loss2d_forward":
        return args[3] != 0  # a reduction
    if name == "cumsum":
        return args[0].is_floating_point()
    if name == "bincount":
        return len(args) > 1 and args[1] is not None  # weights
    # F.interpolate takes another way on GPUs, see below; that of other modes is not in use here.
    return name in REFUSED or (name.startswith("upsample_") and name.endswith("_backward") and "bilinear2d" not in name)


class Recorder(TorchDispatchMode):
    """Collects the names of operations, and those that a GPU would refuse."""

    def __init__(self):
        super().__init__()
        self.names, self.refused = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.add(name)
        if is_refused(name, args):
            self.refused.add(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("augmentation", ["cutmix", "cutout", "classmix"])
def test_no_operation_of_a_step_is_refused_on_a_gpu(variant, augmentation):
    student = make_student(auxiliary_head=True)
    settings = make_settings(
        variant=variant,
        strong_augmentation=augmentation,
        strong_probability=1.0,
        supervised_loss="ohem" if variant == "official" else "ce",
        ohem_min_kept=100,
    )
    step, batch = U2PL(settings, student), make_batch()
    batch = dataclasses.replace(batch, y_u=batch.y_l)
    with Recorder() as recorder:
        step(student, batch, step=3, total_steps=10).total.backward()
        step.finish(student, 3)
        MeanIoU(4).update(batch.y_l.clamp(max=3), batch.y_l)
    # What was recorded is forward, backward, moving average and evaluation.
    assert {"nll_loss2d_forward", "convolution_backward", "_foreach_lerp_", "bincount"} <= recorder.names
    assert not recorder.refused


@pytest.mark.parametrize("kind", [FixMatch, UniMatchV2, U2PL])
def test_no_operation_of_strong_views_and_options_is_refused_on_a_gpu(kind):
    student, batch = make_student(8 * kind.uses_representation, auxiliary_head=True), make_batch()
    step = make_options_step(student, **EVERYTHING) if kind is U2PL else make_fixmatch_step(kind, student)
    batch = dataclasses.replace(batch, y_u=batch.y_l)
    with Recorder() as recorder:
        for number in range(4):  # some images are jittered, grey and blurred
            step(student, batch, step=3, total_steps=10).total.backward()
            step.finish(student, number)
    assert {"index_copy", "replication_pad2d", "floor", "_foreach_lerp_"} <= recorder.names
    assert not recorder.refused


def test_the_loss_of_the_model_itself_is_not_refused_on_a_gpu():
    batch = make_batch()
    with Recorder() as recorder:
        make_student()(batch.x_l, labels=batch.y_l).loss.backward()
    assert "nll_loss2d_forward" in recorder.names and not recorder.refused


def test_off_the_cpu_deterministic_interpolation_uses_no_atomic_kernel():
    torch.use_deterministic_algorithms(True)
    try:
        with torch.device("meta"), Recorder() as recorder:
            make_student()(torch.randn(2, 3, 33, 33)).logits.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert "convolution_backward" in recorder.names
    assert not {name for name in recorder.names if name.startswith("upsample")}
