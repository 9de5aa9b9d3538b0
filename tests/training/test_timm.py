"""Training with backbones of timm, where it and a torchvision that fits torch are installed."""

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import evaluate_model
from u2pl_hf.system.processes import synchronize_batchnorm

try:
    import timm
    from timm.layers import BatchNormAct2d
except (ImportError, RuntimeError) as reason:  # RuntimeError: a torchvision of another torch
    pytest.skip(f"needs timm and torchvision ({reason})", allow_module_level=True)

BACKBONE = "timm/test_efficientnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as timm publishes them: the whole classifier."""
    torch.manual_seed(3)
    network = timm.create_model("test_efficientnet")
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path, network.state_dict()


@pytest.mark.parametrize("output_stride, deepest", [(None, 2), (32, 2), (16, 4), (8, 8)])
def test_trains_from_a_file_evaluates_and_reloads(tiny_data, weights, tmp_path, output_stride, deepest):
    path, tensors = weights
    trainer = make_trainer(
        tiny_data, tmp_path / "run", backbone=BACKBONE, backbone_weights=str(path), output_stride=output_stride,
        auxiliary_head=True, max_steps=4, warmup_steps=2,
    )  # fmt: skip
    started = trainer.run.student.backbone.features.state_dict()
    assert len(started) > 50
    assert all(torch.equal(t, tensors[name.removeprefix("_backbone.")]) for name, t in started.items())
    with torch.no_grad():
        maps = trainer.run.student.backbone(torch.randn(2, 3, 64, 64))
    assert maps[0].shape[-1] == 16 and maps[2].shape[-1] == deepest
    results = trainer.train()
    assert results["backbone"] == BACKBONE
    assert results["architecture"] == ({"output_stride": output_stride} if output_stride in (8, 16) else None)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    teacher = trainer.run.method.teacher.state_dict()
    assert all(torch.equal(tensor, teacher[key]) for key, tensor in loaded.state_dict().items())
    source = trainer.run.data.evaluation
    scored = evaluate_model(loaded.to(memory_format=torch.channels_last), source, range(len(source.ids)), device="cpu")
    assert scored["mean_iou"] == pytest.approx(results["last"]["mean_iou"], abs=1e-3)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"backbone": "timm/nonsense"}, "timm has no nonsense"),
        (
            {"backbone": "timm/vgg11", "output_stride": 16},
            "cannot be used with --output_stride 16 .*: pass --output_stride 32",
        ),
        ({"backbone": "timm/vit_tiny_patch16_224"}, "another network, such as timm/mobilenetv2_100"),
        ({"backbone": "timm/swin_tiny_patch4_window7_224"}, "cannot be used"),
        ({"backbone_stages": ["stage1"]}, "goes with backbones of transformers, not with --backbone timm/"),
        ({"backbone_weights": "nowhere.safetensors"}, "no such file or folder"),
        ({"backbone_weights": "."}, r"weights \.: pass a .safetensors file"),
        ({"backbone": "timm/test_resnet", "backbone_weights": "{file}"}, "of another network"),
    ],
)
def test_mistakes_are_told_in_one_line(tiny_data, weights, tmp_path, options, told):
    options = {k: v.format(file=weights[0]) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=told) as error:
        make_trainer(tiny_data, tmp_path / "run", **{"backbone": BACKBONE, "backbone_weights": "none"} | options)
    assert "\n" not in str(error.value)


def test_synchronised_norms_keep_the_activation_that_they_hold():
    network = timm.create_model("test_efficientnet")
    held = {name: module.act for name, module in network.named_modules() if isinstance(module, BatchNormAct2d)}
    assert any(not isinstance(act, nn.Identity) for act in held.values())
    accelerator = type("SeveralGPUs", (), {"distributed_type": DistributedType.MULTI_GPU})
    found = dict(synchronize_batchnorm(accelerator, network).named_modules())
    assert all(isinstance(found[name], nn.SyncBatchNorm) and found[name].act is act for name, act in held.items())
