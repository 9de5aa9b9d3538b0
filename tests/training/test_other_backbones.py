"""Training with backbones of transformers."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForSemanticSegmentation, Dinov2Model

from tests.model.test_backbones import TINY
from tests.training.distributed import on_two_processes
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import evaluate_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders as save_pretrained writes them; one has weights and says how its images were normalised."""
    path = tmp_path_factory.mktemp("backbones")
    for name, config in TINY.items():
        config.save_pretrained(path / name)
    torch.manual_seed(5)
    Dinov2Model(TINY["dinov2"]).save_pretrained(path / "dinov2")
    (path / "dinov2" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    return path


@pytest.mark.parametrize("name", ["convnext", "swin", "dinov2"])
def test_trains_evaluates_and_reloads(tiny_data, folders, tmp_path, name):
    weights = None if name == "dinov2" else "none"
    trainer = make_trainer(
        tiny_data, tmp_path / "run", backbone=str(folders / name), backbone_weights=weights, max_steps=20,
        warmup_steps=8, learning_rate=0.01, auxiliary_head=True,
    )  # fmt: skip
    results = trainer.train()
    assert results["backbone"] == name
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run")
    AutoImageProcessor.from_pretrained(tmp_path / "run")
    teacher = trainer.run.method.teacher.state_dict()
    assert all(torch.equal(tensor, teacher[key]) for key, tensor in loaded.state_dict().items())
    source = trainer.run.data.evaluation
    scored = evaluate_model(loaded.to(memory_format=torch.channels_last), source, range(len(source.ids)), device="cpu")
    assert scored["mean_iou"] == pytest.approx(results["last"]["mean_iou"], abs=1e-3)


def test_starts_from_the_weights_in_the_folder(tiny_data, folders, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", backbone=str(folders / "dinov2"))
    saved = load_file(folders / "dinov2" / "model.safetensors")
    features = trainer.run.student.backbone.features.state_dict()

    def contents(tensors):
        # Names in files are not those in the network: transformers translates between its versions.
        return {(tensor.shape, tensor.double().sum().item()) for tensor in tensors}

    assert len(saved) > 50 and contents(saved.values()) <= contents(features.values())
    assert trainer.run.student.config.backbone_image_std == [0.5, 0.5, 0.5]
    fresh = make_trainer(tiny_data, tmp_path / "run", backbone=str(folders / "dinov2"), backbone_weights="none")
    assert fresh.run.student.config.backbone_image_std is None
    assert not contents(saved.values()) <= contents(fresh.run.student.backbone.features.state_dict().values())


@pytest.mark.parametrize(
    "options, told",
    [
        ({"backbone": "resnet51"}, "resnet51: no such backbone; pass resnet18"),
        ({"backbone": "{empty}"}, "model_type"),
        ({"backbone": "{swin}"}, "pass --backbone_weights none"),
        ({"backbone": "{swin}", "backbone_weights": "{dinov2}"}, "of another network"),
        ({"backbone": "{swin}", "backbone_weights": "there/swin.bin"}, "there/swin.bin: no such file or folder"),
        ({"backbone": "{swin}", "backbone_weights": "/nowhere/swin"}, "/nowhere/swin: no such file or folder"),
        ({"backbone": "{convnext}", "backbone_stages": ["stage9"]}, "pass some of stem stage1 stage2"),
        ({"backbone_stages": ["stage4"]}, "not with --backbone resnet18"),
        ({"backbone": "{convnext}", "backbone_weights": "none", "gradient_checkpointing": True}, "convnext cannot"),
    ],
)
def test_mistakes_are_told_in_one_line(tiny_data, folders, tmp_path, options, told):
    (folders / "empty").mkdir(exist_ok=True)
    paths = {name: folders / name for name in (*TINY, "empty")}
    options = {k: v.format(**paths) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=told) as error:
        make_trainer(tiny_data, tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def train_on_this_process(data: str, backbone: str, output: str):
    dpt = {"head": "dpt", "crop_size": 70}
    make_trainer(data, output, backbone=backbone, num_workers=0, max_steps=4, warmup_steps=2, **dpt).train()


def test_two_processes_with_parameters_that_nothing_uses(tiny_data, folders, tmp_path):
    """DINOv2's mask token: without telling DistributedDataParallel, it would wait for its gradient for ever.

    Nor has that network any BatchNorm whose statistics could be averaged.
    """
    token = next(n for n, _ in AutoBackbone.from_config(TINY["dinov2"]).named_parameters() if "mask_token" in n)
    on_two_processes(train_on_this_process, str(tiny_data), str(folders / "dinov2"), str(tmp_path / "run"))
    assert f"backbone.features.{token}" in load_file(tmp_path / "run" / "model.safetensors")


def test_checkpointing_repeats_the_drawn_paths(tiny_data, folders, tmp_path):
    """Swin drops whole paths at random: the second forward of a checkpointed layer must drop the same."""
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            tiny_data, tmp_path / f"{checkpointing}", backbone=str(folders / "swin"), backbone_weights="none",
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        trainer.train()
        found.append(trainer.run.student.state_dict())
    for key, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][key], rtol=0, atol=1e-6)
