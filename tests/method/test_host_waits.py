"""Steps of FixMatch, UniMatch V2 and U2PL with all options on tensors that have no values: a read-back would raise."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.method.test_ael_step import CopiesThatWait, numbered, showing
from tests.method.test_fixmatch import make_step as make_fixmatch_step
from tests.method.test_step import SIZE, make_batch, make_student
from tests.method.test_u2pl_options import EVERYTHING
from tests.method.test_u2pl_options import make_step as make_options_step
from u2pl_hf.method import equalization as eq
from u2pl_hf.method.fixmatch import FixMatch
from u2pl_hf.method.u2pl import U2PL
from u2pl_hf.method.unimatch_v2 import UniMatchV2
from u2pl_hf.pixels import statistics

MAPS = ("x_l", "y_l", "x_u", "valid_u", "y_u")


class TensorsThatWait(TorchFunctionMode):
    """Takes down the tensors that are made of numbers of the host and copied; no dispatcher sees that copy."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.Tensor.new_tensor, torch.tensor, torch.as_tensor) and result.device.type != "cpu":
            self.found.append(result.shape)
        return result


def run_without_values(kind, monkeypatch, **options) -> None:
    """Two whole steps: what is drawn on the host differs between them."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # knows no such device
    student, batch = make_student(8 * kind.uses_representation), numbered(make_batch())
    if kind is U2PL:
        step = make_options_step(student, **EVERYTHING, **options)
    else:
        step = make_fixmatch_step(kind, student, **options)
    step, student = step.to("meta"), student.to("meta")
    batch = dataclasses.replace(batch, y_u=batch.y_l)
    batch = dataclasses.replace(batch, **{name: getattr(batch, name).to("meta") for name in MAPS})
    # Rows come from the loader, and so lie on the host.
    batch = showing(batch, torch.arange(2))
    if step.partners is not None:
        maps = [torch.randn(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE).long(), torch.ones(2, SIZE, SIZE).bool()]
        maps = [m.to("meta") for m in maps]
        step.partners.pool.request = lambda rows, seeds: (rows.shape, seeds.shape)
        step.partners.pool.receive = lambda requested: maps
    statistics(torch.device("meta"))
    with CopiesThatWait() as waits, TensorsThatWait() as made:
        for number in range(2):
            step.begin(student, number)
            output = step(student, batch, number, 10)
            output.total.backward()
            step.finish(student, number)
    assert waits.found == made.found == []
    assert all(parameter.grad is not None for parameter in student.parameters())
    with pytest.raises(RuntimeError):
        output.total.item()


@pytest.mark.parametrize("kind", [FixMatch, UniMatchV2, U2PL])
def test_no_step_reads_back_to_the_host(monkeypatch, kind):
    run_without_values(kind, monkeypatch)


@pytest.mark.parametrize("kind", [FixMatch, U2PL])
def test_only_the_boxes_of_components_need_the_host(monkeypatch, kind):
    told = []

    def boxes(labels, classes):
        told.append((labels.shape, classes.shape))
        return torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(classes, dtype=torch.bool)

    monkeypatch.setattr(eq, "draw_class_boxes", boxes)
    generator = torch.Generator
    no_such_device = SimpleNamespace(manual_seed=lambda seed: None)
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator() if device == "cpu" else no_such_device)
    run_without_values(kind, monkeypatch, partner="class")
    assert told == [((2, SIZE, SIZE), (2,))] * 2
