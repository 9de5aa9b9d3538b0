"""Each method on DPT over a small DINOv2, stopped and going on; what the command line refuses; weights from a file."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, Dinov2Config

from tests.training.test_strong_views import assert_goes_on
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.training.build import build_student
from u2pl_hf.training.plan import _losses, kept_bytes
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.weights import backbones

TINY = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
DPT = {"backbone_weights": "none", "head": "dpt", "crop_size": 70, "max_steps": 3, "save_steps": 1,
       "keep_checkpoints": 9, "optimizer": "adamw", "learning_rate": 0.001}  # fmt: skip


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    TINY.save_pretrained(folder := tmp_path_factory.mktemp("dinov2"))
    return str(folder)


@pytest.mark.parametrize("method", ["suponly", "u2pl", "fixmatch", "unimatch_v2"])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny_data, dinov2, tmp_path, method):
    options = DPT | {"backbone": dinov2, "method": method}
    if method == "u2pl":
        options |= {"warmup_steps": 1, "variant": "robust"}
    if method in ("fixmatch", "unimatch_v2"):
        options["confidence_threshold"] = 0.14
    whole, _ = assert_goes_on(tiny_data, tmp_path, 2, **options)
    exported = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "whole")
    assert whole.run.results["architecture"] == {"head": "dpt"}
    trained = whole.run.method.model_to_evaluate(whole.run.student, 3).state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in exported.state_dict().items())
    if method == "unimatch_v2":
        # One draw for all four taps, as published.
        assert len(whole.run.method.channels) == 4


def facebook_names(weights: dict) -> dict:
    """The tensors of a backbone by the names of DINOv2's own code."""
    pairs = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "attention.o_proj": "attn.proj",
        "layer_scale": "ls",
        "lambda1": "gamma",
        "layernorm.": "norm.",
    }
    theirs = {}
    for name, tensor in weights.items():
        if ".attention.k_proj" in name or ".attention.v_proj" in name:
            continue
        if ".attention.q_proj" in name:
            tensor = torch.cat([weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("attention.q_proj", "attn.qkv")
        for own, other in pairs.items():
            name = name.replace(own, other)
        theirs[name] = tensor
    return theirs


def test_starts_from_the_file_of_dinov2s_authors(tiny_data, tmp_path):
    wide = Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=1, image_size=56, patch_size=14)
    wide.save_pretrained(tmp_path / "wide")
    options = DPT | {"backbone": str(tmp_path / "wide"), "method": "suponly"}
    weights = make_trainer(tiny_data, tmp_path / "one", seed=5, **options).run.student.backbone.features.state_dict()
    torch.save(facebook_names(weights), tmp_path / "dinov2_vits14.pth")
    options["backbone_weights"] = str(tmp_path / "dinov2_vits14.pth")
    run = make_trainer(tiny_data, tmp_path / "two", **options).run
    found = run.student.backbone.features.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
    assert run.initialised_with["backbone"] == "dinov2_vits14.pth"
    with pytest.raises(InputError, match=r"of another network than --backbone facebook/dinov2-small.*pass its own"):
        small = {"backbone": "facebook/dinov2-small"}
        make_trainer(tiny_data, tmp_path / "two", **options | small)
    torch.save({"model": {}, "epoch": 3}, tmp_path / "dinov2_vits14.pth")
    with pytest.raises(InputError, match="no state dict; a checkpoint of a whole network is for u2pl convert"):
        make_trainer(tiny_data, tmp_path / "two", **options)
    torch.save({"blocks.0.norm1.weight": torch.ones(64)}, tmp_path / "dinov2_vits14.pth")
    with pytest.raises(InputError, match=r"no DINOv2 in the names of its authors.*pass"):
        make_trainer(tiny_data, tmp_path / "two", **options)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"crop_size": 65}, "--crop_size 65 is no multiple of 14, the patches of .*: pass 56 or 70"),
        ({"backbone_stages": ["stage1", "stage4"]}, "--head dpt reads four, pass four or none"),
        ({"backbone": "resnet18"}, "--head dpt needs another backbone"),
        ({"head": "upernet"}, "must be one of deeplabv3plus, deeplabv3plus_light, dpt"),
    ],
)
def test_refusals(tiny_data, dinov2, tmp_path, options, told):
    with pytest.raises(InputError, match=told):
        make_trainer(tiny_data, tmp_path / "run", **DPT | {"backbone": dinov2, "method": "suponly"} | options)


def test_a_plan_counts_what_a_pass_keeps(dinov2):
    """Attention included, of which fused kernels keep no products."""
    args = run_arguments(**DPT | {"backbone": dinov2, "method": "suponly", "crop_size": 140, "head_channels": 8})
    counted, kept = [], []
    for device, found in (("meta", counted), ("cpu", kept)):
        with torch.device(device):
            student = build_student(args, list("abcdefghijklmnop"))
        found.append(kept_bytes(lambda student=student: _losses(args, student, 3)))
    assert counted == kept and counted[0] > 1e6


def test_published_sizes_need_no_hub(monkeypatch):
    monkeypatch.setattr(backbones, "is_reachable", lambda: False)
    for size, width, millions in (("small", 64, 24.8), ("base", 128, 97.5)):
        args = run_arguments(backbone=f"facebook/dinov2-{size}", head="dpt", head_channels=width, method="suponly",
                             crop_size=518)  # fmt: skip
        with torch.device("meta"):
            student = build_student(args, [str(c) for c in range(21)])
        assert round(student.num_parameters() / 1e6, 1) == millions
