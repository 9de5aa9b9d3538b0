"""DPT on backbones of transformers: the published network's numbers, transformers' own DPT, any size of image."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSemanticSegmentation, BeitConfig, Dinov2Config, DINOv3ViTConfig
from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingNeck

from tests.golden import load_golden
from tests.model.test_backbones import TINY
from tests.model.test_modeling import narrow_config, narrow_model
from tests.published import recipe_tensor
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.model.convert import load_published, mismatch, published_config, rename_published
from u2pl_hf.model.dpt_u2pl import U2PLDPT, positions_as_published, resize

VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
KINDS = {
    **{name: TINY[name] for name in ("dinov2", "swin", "convnext")},
    "dinov3_vit": DINOv3ViTConfig(**VIT, intermediate_size=32),
    "beit": BeitConfig(**VIT, intermediate_size=32, use_relative_position_bias=True),
}


def published() -> tuple[dict, dict, int]:
    """State dict, golden outputs, seed."""
    expected, metadata = load_golden("model_unimatch_v2_small")
    shapes, seed = json.loads(metadata["state_dict"]), metadata["seed"]
    weights = {}
    for name, shape in sorted(shapes.items()):
        tensor = recipe_tensor(seed, name, shape)
        if len(shape) == 2 and name.endswith("weight"):
            tensor = tensor * 10 / shape[1] ** 0.5
        weights[name] = 1 + tensor if name.endswith("gamma") else tensor
    return weights, expected, int(seed)


def test_outputs_equal_the_published_code():
    weights, expected, seed = published()
    model = load_published(weights)
    pixels = torch.randn(1, 3, 70, 98, generator=torch.Generator().manual_seed(seed + 7))
    with torch.no_grad():
        first_tap = model.backbone(pixels)[0].flatten(2).transpose(1, 2)[:, :4]
        logits = model(pixels).logits
    found = {"tap_first": first_tap, "logits": logits, "logits_at_input_size": resize(logits, (70, 98))}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name
    assert round(model.num_parameters() / 1e6, 1) == 24.8
    assert model.config.backbone_config.out_features == ["stage3", "stage6", "stage9", "stage12"]


@pytest.mark.parametrize("rows, columns", [(37, 37), (37, 36), (5, 7), (57, 40), (4, 37)])
def test_positions_are_interpolated_as_dinov2_does(rows, columns):
    table = nn.Parameter(torch.randn(1, 1 + 37 * 37, 6))
    part = SimpleNamespace(position_embeddings=table, patch_embeddings=SimpleNamespace(patch_size=(14, 14)))
    found = positions_as_published(part, None, 14 * rows, 14 * columns)
    grid = table[:, 1:].view(1, 37, 37, 6).permute(0, 3, 1, 2)
    if (rows, columns) != (37, 37):
        grid = F.interpolate(grid, scale_factor=((rows + 0.1) / 37, (columns + 0.1) / 37), mode="bicubic")
    expected = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 if (rows, columns) != (37, 37) else 0)
    (gradient,) = torch.autograd.grad(found.square().sum(), table)
    (wanted,) = torch.autograd.grad(expected.square().sum(), table)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_maps_of_patches_are_fused_as_in_transformers():
    ours = U2PLDPT([16] * 4, 8, from_patches=True)
    settings = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [2, 4, 8, 16], "fusion_hidden_size": 8}
    theirs = DepthAnythingNeck(SimpleNamespace(**settings, reassemble_factors=[4, 2, 1, 0.5]))
    names = {
        "projects": "reassemble_stage.layers.{}.projection",
        "resizes": "reassemble_stage.layers.{}.resize",
        "inputs": "convs.{}",
    }
    # Theirs counts the levels from the deepest one.
    units = {"skip.conv": "residual_layer1.convolution", "unit.conv": "residual_layer2.convolution"}
    state = {}
    for name, tensor in ours.state_dict().items():
        part, level, rest = name.split(".", 2)
        if part == "fusions":
            for own, other in units.items():
                rest = rest.replace(own, other)
            rest = rest.replace("project.", "projection.")
            state[f"fusion_stage.layers.{3 - int(level)}.{rest}"] = tensor
        else:
            state[f"{names[part].format(level)}.{rest}"] = tensor
    theirs.load_state_dict(state)
    maps = [torch.randn(2, 16, 5, 7) for _ in range(4)]
    tokens = [torch.cat([torch.zeros(2, 1, 16), m.flatten(2).transpose(1, 2)], dim=1) for m in maps]
    torch.testing.assert_close(ours(maps), theirs(tokens, 5, 7)[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_any_size_trains_and_loads_again(tmp_path, name):
    model = narrow_model(backbone=KINDS[name], head="dpt", auxiliary_head=True)
    pixels = torch.randn(2, 3, 70, 97, requires_grad=True)
    output = model(pixels, labels=torch.zeros(2, 70, 97).long())
    patch = model.config.patch
    # To the nearest number of patches, of which DPT makes 8 x 8 pixels; or a quarter of the image, rounded up.
    size = (8 * round(70 / patch), 8 * round(97 / patch)) if patch else (18, 25)
    assert output.logits.shape == (2, 5, *size) and output.representation.shape == (2, 12, *size)
    assert output.aux_logits.shape[:2] == (2, 5)
    output.loss.backward()
    assert pixels.grad[..., -1, :].any() and pixels.grad[..., -1].any()
    assert len(model.feature_channels) == 4

    model.eval().save_pretrained(tmp_path)
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixels).logits, model(pixels).logits, rtol=0, atol=1e-5)


def test_other_sizes_are_resized_to_whole_patches():
    model = narrow_model(backbone=TINY["dinov2"], head="dpt").eval()
    pixels = torch.randn(1, 3, 76, 92)
    with torch.no_grad():
        expected = model(F.interpolate(pixels, (70, 98), mode="bilinear", align_corners=True)).logits
        torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=1e-6)
        # One patch at least.
        assert model(torch.randn(1, 3, 3, 30)).logits.shape == (1, 5, 8, 16)


def test_large_transformers_are_read_where_the_published_code_reads_them():
    def stages(layers):
        config = Dinov2Config(hidden_size=16, num_hidden_layers=layers, num_attention_heads=2)
        return [
            int(name.removeprefix("stage"))
            for name in U2PLConfig(backbone=config, head="dpt").backbone_config.out_features
        ]

    assert [stages(n) for n in (12, 24, 40)] == [[3, 6, 9, 12], [5, 12, 18, 24], [10, 20, 30, 40]]


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"head": "upernet"}, "head must be one of"),
        ({"head": "dpt"}, "needs a backbone of transformers or timm"),
        ({"head": "dpt", "backbone": Dinov2Config(**VIT, out_features=["stage1", "stage4"])}, "four of its stages"),
    ],
)
def test_refusals(fields, told):
    with pytest.raises(ValueError, match=told):
        narrow_config(**fields)


def published_shapes(hidden: int, layers: int, width: int, neck: tuple[int, ...], classes: int) -> dict[str, list[int]]:
    """Names and shapes of any size; of the largest, the two layers of each block's MLP are another kind."""
    shapes = json.loads(load_golden("model_unimatch_v2_small")[1]["state_dict"])
    block = {name: shape for name, shape in shapes.items() if ".blocks.0." in name}
    if layers == 40:
        block = {name: shape for name, shape in block.items() if ".mlp." not in name}
        for name, rows, columns in (("w12", 8192, hidden), ("w3", hidden, 4096)):
            block |= {
                f"backbone.blocks.0.mlp.{name}.weight": [rows, columns],
                f"backbone.blocks.0.mlp.{name}.bias": [rows],
            }
    sizes = {
        48: neck[0],
        96: neck[1],
        192: neck[2],
        64: width,
        21: classes,
        384: hidden,
        1152: 3 * hidden,
        1536: 4 * hidden,
    }
    rest = {name: shape for name, shape in shapes.items() if ".blocks." not in name}
    blocks = {name.replace(".0.", f".{i}.", 1): shape for i in range(layers) for name, shape in block.items()}
    # The neck's last level is as wide as the transformer in all sizes.
    scaled = {name: [sizes.get(n, n) for n in shape] for name, shape in (rest | blocks).items()}
    return {name: shapes_of if ".mlp.w" not in name else (rest | blocks)[name] for name, shapes_of in scaled.items()}


@pytest.mark.parametrize(
    "hidden, layers, width, neck, millions",
    [
        (384, 12, 64, (48, 96, 192), 24.8),
        (768, 12, 128, (96, 192, 384), 97.5),
        (1024, 24, 256, (256, 512, 1024), 335.6),
        (1536, 40, 384, (1536, 1536, 1536), 1258.7),
    ],
)
def test_checkpoints_of_all_sizes_fit(hidden, layers, width, neck, millions):
    shapes = published_shapes(hidden, layers, width, neck, classes=81)
    weights = {f"module.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = published_config(weights)
    with torch.device("meta"):
        model = U2PLForSemanticSegmentation(config)
    assert mismatch(rename_published(weights), model.state_dict()) is None
    assert (config.num_labels, config.head_channels) == (81, width)
    assert round(model.num_parameters() / 1e6, 1) == pytest.approx(millions, abs=0.15)


def test_half_a_checkpoint_is_refused():
    weights = published()[0]
    for name, shape in {"patch_embed.proj.weight": (100, 3, 14, 14), "pos_embed": (1, 0, 384)}.items():
        odd = weights | {f"backbone.{name}": torch.zeros(shape)}
        with pytest.raises(ValueError, match=r"no DINOv2: patch_embed\.proj\.weight and pos_embed have the shapes"):
            load_published(odd)
    for name, told in {
        "head.projects.2.bias": "there is nothing for dpt.projects.2.bias",
        "backbone.blocks.3.attn.qkv.weight": "no.* whole DINOv2 network: there is nothing for encoder.layer.3",
        "backbone.pos_embed": "no DINOv2",
        "head.scratch.output_conv.2.weight": "classifier.2.weight",
    }.items():
        with pytest.raises(ValueError, match=told):
            load_published({key: tensor for key, tensor in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"UniMatch V2 network: module\.head\.other"):
        load_published(
            {f"module.{key}": tensor for key, tensor in weights.items()} | {"module.head.other": torch.ones(1)}
        )
