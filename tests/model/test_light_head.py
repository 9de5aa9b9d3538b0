"""DeepLabv3+ of its own paper: separable convolutions."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig

from tests.model.test_modeling import images, labels, narrow_config, narrow_model, scramble
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation

LIGHT = {"head": "deeplabv3plus_light"}


def head_sizes(**fields) -> dict[str, int]:
    """Numbers of parameters by part, at the published width."""
    with torch.device("meta"):
        model = U2PLForSemanticSegmentation(U2PLConfig(backbone="resnet50", num_labels=21, **fields))
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def test_parameters_are_those_of_the_paper():
    sizes, norm = head_sizes(**LIGHT), 2 * 256
    separable = [9 * c + 256 * c + norm for c in (2048, 256, 256 + 48)]
    # The whole image, 1x1, three dilated ones; projection; the convolution behind it.
    aspp = 2 * (2048 * 256 + norm) + 3 * separable[0] + 5 * 256 * 256 + norm + separable[1]
    assert sizes["aspp"] == aspp
    assert sizes["low_level"] == 256 * 48 + 48 + 2 * 48
    assert sizes["classifier"] == separable[2] + 256 * 21 + 21
    assert sizes["representation_head"] == separable[2] + 256 * 256 + 256
    published = head_sizes()
    assert published.pop("backbone") == sizes.pop("backbone")
    assert sum(sizes.values()) < sum(published.values()) / 4


@pytest.mark.parametrize("backbone", ["resnet18", ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4)])
def test_every_output_is_there_and_every_parameter_learns(backbone):
    model = narrow_model(backbone=backbone, auxiliary_head=True, **LIGHT).train()
    scales = tuple(torch.ones(2, channels) for channels in model.feature_channels)
    output = model(images(size=65), labels=labels(size=65), feature_scales=scales)
    assert output.logits.shape[:2] == (2, 5) and output.representation.shape[:2] == (2, 12)
    assert output.logits.shape[2:] == output.representation.shape[2:] and output.aux_logits.shape[:2] == (2, 5)
    (output.loss + output.representation.square().mean() + output.aux_logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_one_depthwise_convolution_sees_one_channel():
    model = narrow_model(**LIGHT)
    depthwise, pointwise = model.aspp.branches[2][:2]
    # No BN between the two, so it starts as torch's own convolutions do, whatever the number of channels.
    assert 0.3 < depthwise.weight.abs().max() <= 1 / 3
    x = images()[:, :1].expand(-1, 64, -1, -1) * torch.randn(64, 1, 1)
    expected = torch.stack(
        [
            torch.nn.functional.conv2d(x[:, c : c + 1], depthwise.weight[c : c + 1], padding=24, dilation=24)
            for c in range(64)
        ],
        dim=2,
    )
    torch.testing.assert_close(depthwise(x), expected[:, 0])
    assert pointwise.kernel_size == (1, 1) and depthwise.bias is pointwise.bias is None


def test_reloads(tmp_path):
    model = narrow_model(**LIGHT)
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.head == "deeplabv3plus_light"
    with torch.no_grad():
        assert torch.equal(loaded(images()).logits, model.eval()(images()).logits)


def test_its_name_is_told():
    with pytest.raises(ValueError, match="deeplabv3plus, deeplabv3plus_light, dpt"):
        narrow_config(head="light")
