"""Backbones of transformers under the U2PL heads."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSemanticSegmentation,
    BertConfig,
    ConvNextConfig,
    Dinov2Config,
    PvtV2Config,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)

from tests.model.test_modeling import narrow_config, narrow_model
from u2pl_hf import U2PLConfig
from u2pl_hf.method.teacher import batch_statistics
from u2pl_hf.model.image_processing_u2pl import IMAGE_MEAN, IMAGE_STD

TINY = {
    "convnext": ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20]),
    "swin": SwinConfig(depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], embed_dim=8, window_size=4, drop_path_rate=0.5),
    "dinov2": Dinov2Config(hidden_size=16, num_hidden_layers=8, num_attention_heads=2, image_size=56, patch_size=14),
    "resnet": ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20], embedding_size=8, layer_type="basic"),
    "pvt_v2": PvtV2Config(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4]),
}
# Input size over the sizes of low-level features and of the last but one stage.
STRIDES = {"dinov2": (14, 14)}


@pytest.mark.parametrize("name", TINY)
def test_any_size_trains_and_loads_again(tmp_path, name):
    model = narrow_model(backbone=TINY[name], auxiliary_head=True)
    low, third = STRIDES.get(name, (4, 16))
    pixels = torch.randn(2, 3, 70, 97, requires_grad=True)
    output = model(pixels, labels=torch.zeros(2, 70, 97).long())
    assert output.logits.shape == (2, 5, -(-70 // low), -(-97 // low))
    assert output.aux_logits.shape == (2, 5, -(-70 // third), -(-97 // third))
    assert output.representation.shape[1] == 12
    output.loss.backward()
    assert (model.backbone.multiple == 1) == (name == "resnet")
    # The image's last row and column are seen, whatever the patch.
    assert pixels.grad[..., -1, :].any() and pixels.grad[..., -1].any()

    model.eval().save_pretrained(tmp_path)
    for auto in (AutoModelForSemanticSegmentation, AutoModel):
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(pixels).logits, model(pixels).logits, rtol=0, atol=1e-5)
    assert loaded.config.backbone == name and len(loaded.config.backbone_config.out_features) == 4


def test_stages_are_spread_over_the_depth_or_as_asked():
    assert narrow_config(backbone=TINY["dinov2"]).backbone_config.out_features == [f"stage{i}" for i in (2, 4, 6, 8)]
    assert TINY["dinov2"].out_features == ["stage8"]  # the caller's own is as it was
    two = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20], out_features=["stage2", "stage4"])
    model = narrow_model(backbone=two, auxiliary_head=True)
    output = model(torch.randn(2, 3, 64, 64))
    # The last but one of two is the first.
    assert output.logits.shape[-1] == output.aux_logits.shape[-1] == 8
    assert model.low_level[0].in_channels == 12 and model.aspp.branches[0][0].in_channels == 20


def test_sizes_in_a_tuple_are_taken_as_a_list():
    """ConvNextConfig() has one, and its own backbone cannot use it."""
    given = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=(8, 12, 16, 20))
    for out_features in (None, ["stage2", "stage4"]):
        given.out_features = out_features or given.out_features
        assert narrow_model(backbone=given)(torch.randn(2, 3, 64, 64)).logits.shape[1] == 5
    assert isinstance(ConvNextConfig().hidden_sizes, tuple) and isinstance(given.hidden_sizes, tuple)


def test_configuration_survives_as_object_and_as_dict():
    config = narrow_config(backbone=TINY["swin"])
    for again in (U2PLConfig(**config.to_dict()), narrow_config(backbone_config=TINY["swin"].to_dict())):
        assert again.backbone == "swin" and type(again.backbone_config) is SwinConfig
        assert again.backbone_config.to_dict() == config.backbone_config.to_dict()
    timm = narrow_config(backbone=TimmBackboneConfig(backbone="mobilenetv2_100"))
    assert timm.backbone_config.out_indices == [-4, -3, -2, -1]
    assert U2PLConfig(**timm.to_dict()).backbone_config.backbone == "mobilenetv2_100"


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"backbone": BertConfig()}, "BertConfig, which AutoBackbone does not take"),
        ({"backbone": "convnext"}, "or a configuration for AutoBackbone, got 'convnext'"),
        ({"backbone": ConvNextConfig(depths=[1], hidden_sizes=[8], num_stages=1)}, "two besides the stem"),
        ({"backbone_image_mean": [0.5, 0.5]}, "three numbers"),
    ],
)
def test_what_is_no_backbone_is_told(fields, told):
    with pytest.raises(ValueError, match=told):
        narrow_config(**fields)


def test_initialisation_is_the_backbones_own():
    """Not the heads' Kaiming normal, whose deviation here would be sqrt(2 / (8 * 4 * 4)) = 0.125."""
    model = narrow_model(backbone=TINY["convnext"])
    patches = model.backbone.features.embeddings.patch_embeddings.weight
    assert patches.std().item() == pytest.approx(TINY["convnext"].initializer_range, rel=0.2)


def test_own_normalisation_of_the_backbone():
    """The features are those of an image normalised as the backbone wants it; the sizes need no padding."""
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    model = narrow_model(backbone=TINY["convnext"], backbone_image_mean=mean, backbone_image_std=std).eval()
    image = torch.rand(1, 3, 64, 96)

    def normalise(mean, std):
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        found = model.backbone(normalise(IMAGE_MEAN, IMAGE_STD))
        expected = model.backbone.features(normalise(mean, std)).feature_maps
    for got, wanted in zip(found, (expected[0], expected[-2], expected[-1]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_own_normalisation_is_saved(tmp_path):
    model = narrow_model(backbone=TINY["convnext"], backbone_image_mean=[0.5, 0.5, 0.5]).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        loaded.backbone.image_shift.flatten(), (torch.tensor(IMAGE_MEAN) - 0.5) / torch.tensor(IMAGE_STD)
    )
    assert torch.equal(loaded.backbone.image_scale, torch.ones(1, 3, 1, 1))


def test_teacher_drops_no_paths():
    model, pixels = narrow_model(backbone=TINY["swin"]), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(pixels).logits, model(pixels).logits)
        with batch_statistics(model):
            assert torch.equal(model(pixels).logits, model(pixels).logits)


def test_two_groups_hold_all_parameters():
    model = narrow_model(backbone=TINY["convnext"])
    groups = model.backbone_parameters(), model.head_parameters()
    assert sum(map(len, groups)) == len(list(model.parameters()))
    assert len(groups[0]) == len(list(model.backbone.features.parameters()))
