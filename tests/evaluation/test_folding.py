import pytest
import torch
from torch import nn
from transformers import Dinov2Config

from tests.model.test_modeling import images, narrow_model, scramble
from u2pl_hf.evaluation.folding import TrimmedConv, folded


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "resnet50", "auxiliary_head": True},
        {"stem": "plain", "head": "deeplabv3plus_light"},
    ],
)
def test_computes_the_same_without_a_batchnorm(fields, dtype):
    model = narrow_model(**fields).to(dtype, memory_format=torch.channels_last)
    scramble(model)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = folded(model)
    assert norms(found) == 0 and not any(module.training for module in found.modules())
    assert found.backbone.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    # What it was made of is as it was.
    assert norms(model) > 20 and all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        expected, got = model.eval()(images().to(dtype)), found(images().to(dtype))
    for name, tensor in expected.items():
        worst = (got[name] - tensor).abs().max() / tensor.abs().max()
        assert worst < (1e-5 if dtype == torch.float32 else 1e-13), name
    assert expected.logits.std() > 0


@pytest.mark.parametrize("size", [(2, 9), (9, 2), (3, 3), (4, 4), (3, 4)])
@pytest.mark.parametrize("groups", [1, 4])
def test_what_sees_padding_alone_is_left_out(size, groups):
    conv = nn.Conv2d(4, 4, 3, padding=3, dilation=3, groups=groups).double()
    x, kernels = torch.randn(2, 4, *size, dtype=torch.float64), []
    expected = conv(x)
    with pytest.MonkeyPatch.context() as patch:
        plain = nn.functional.conv2d
        patch.setattr(nn.functional, "conv2d", lambda x, w, *rest: kernels.append(w.shape[2:]) or plain(x, w, *rest))
        torch.testing.assert_close(TrimmedConv(conv)(x), expected)
    assert kernels == [tuple(3 if side > 3 else 1 for side in size)]


def test_only_what_is_a_convolution_and_its_batchnorm():
    """A backbone without any; a BatchNorm behind something else, and one that does more than normalise."""

    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    dinov2 = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    model = folded(narrow_model(backbone=dinov2))
    assert norms(model) == 0 and norms(folded(narrow_model(backbone=dinov2, head="dpt"))) == 0
    others = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), Activated(3))
    assert norms(folded(others)) == 2
