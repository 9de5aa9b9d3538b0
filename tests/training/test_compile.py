"""The default compiler's own code, on a network with one block a stage; test_precision.py has the rest.

A forward pass only: code for a backward pass takes a minute and a half to compile on one core.
"""

import shutil

import pytest
import torch

from tests.method.test_step import make_student
from u2pl_hf.method.suponly import SupOnly
from u2pl_hf.model import backbone_u2pl
from u2pl_hf.training.build import tune_networks
from u2pl_hf.training.recipe.arguments import run_arguments


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.no_cover  # tracing the tracer doubles its time
def test_generated_code_gives_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(backbone_u2pl._ARCHITECTURES, "resnet18", (backbone_u2pl.BasicBlock, (1, 1, 1, 1)))
    student = make_student(representation=0, stem="plain").to(memory_format=torch.channels_last).eval()
    images = torch.randn(2, 3, 65, 65).contiguous(memory_format=torch.channels_last)
    names = student.state_dict().keys()
    with torch.no_grad():
        expected = student(images).logits
        torch._dynamo.reset()
        tune_networks(run_arguments(compile=True), student, SupOnly(SupOnly.Settings(), student))
        found = student(images).logits
        torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert student.state_dict().keys() == names
    assert list((tmp_path / "cache").rglob("*.so"))
