"""Weights that a run starts from: real files and a real Hub, and what training makes of them."""

import json
import math
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import HubServer
from tests.published import narrow_state_dict
from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.hub.push import push_folder
from u2pl_hf.training.plan import plan_run
from u2pl_hf.training.run.checkpoint import sha256_of

DEEP = {"backbone": "resnet50", "stem": "deep", "base_width": 8}
PLAIN = {"backbone": "resnet18", "stem": "plain", "base_width": 8}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def filled(shape: tuple[int, ...], start: float) -> torch.Tensor:
    """Values that no initialisation gives, and no two tensors share."""
    return 0.01 + start + torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) / 1000


def deep_resnet50() -> dict[str, torch.Tensor]:
    """timm's resnet50s, which the published code's encoder is named after, with an eighth of the channels."""
    encoder = {n.removeprefix("encoder."): t for n, t in narrow_state_dict().items() if n.startswith("encoder.")}
    return encoder | {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}


def plain_resnet18(width: int = 8) -> dict[str, torch.Tensor]:
    """torchvision's and timm's resnet18, written out; without num_batches_tracked, as in torchvision's old files."""
    shapes, inside = {"conv1.weight": (width, 3, 7, 7), "bn1": (width,)}, width
    for stage in range(4):
        planes = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            shapes |= {f"{name}.conv1.weight": (planes, inside, 3, 3), f"{name}.bn1": (planes,)}
            shapes |= {f"{name}.conv2.weight": (planes, planes, 3, 3), f"{name}.bn2": (planes,)}
            if stage and not block:
                shapes |= {f"{name}.downsample.0.weight": (planes, inside, 1, 1), f"{name}.downsample.1": (planes,)}
            inside = planes
    norms = {f"{n}.{part}": shape for n, shape in shapes.items() if len(shape) == 1 for part in BN[:4]}
    shapes = {n: shape for n, shape in shapes.items() if len(shape) > 1} | norms
    shapes |= {"fc.weight": (1000, inside), "fc.bias": (1000,)}
    return {name: filled(shape, start) for start, (name, shape) in enumerate(shapes.items())}


def refused(data, tmp_path, **options) -> str:
    """The one line that a run is refused with; nothing is written."""
    with pytest.raises(InputError) as error:
        make_trainer(data, tmp_path / "refused", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()
    return str(error.value)


def backbone_of(trainer) -> dict[str, torch.Tensor]:
    return trainer.run.student.backbone.state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "folder", "folder of .bin"])
@pytest.mark.parametrize(("weights", "network"), [(deep_resnet50(), DEEP), (plain_resnet18(), PLAIN)])
def test_every_backbone_weight_is_filled(tiny_data, tmp_path, kind, weights, network):
    path = tmp_path / {"safetensors": "a.safetensors", "pth": "a.pth", "folder": "model.safetensors"}.get(
        kind, "pytorch_model.bin"
    )
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    named = tmp_path if kind.startswith("folder") else path
    trainer = make_trainer(tiny_data, tmp_path / "run", backbone_weights=str(named), **network)
    found = backbone_of(trainer)
    assert found.keys() | {"fc.weight", "fc.bias"} >= weights.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, weights.get(name, torch.tensor(0))), name
    assert trainer.run.initialised_with == {"backbone": named.name, "sha256": sha256_of(path)}
    fresh = make_trainer(tiny_data, tmp_path / "fresh", **network)
    assert fresh.run.initialised_with is None
    heads = {n: t for n, t in fresh.run.student.state_dict().items() if not n.startswith("backbone.")}
    assert all(torch.equal(trainer.run.student.state_dict()[name], tensor) for name, tensor in heads.items())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_strides_change_no_name(tiny_data, tmp_path, output_stride):
    save_file(plain_resnet18(), tmp_path / "a.safetensors")
    options = PLAIN | {"output_stride": output_stride, "backbone_weights": str(tmp_path / "a.safetensors")}
    assert backbone_of(make_trainer(tiny_data, tmp_path / "run", **options))["conv1.weight"][0, 0, 0, 1] == 0.011


def test_backbones_that_do_not_fit(tiny_data, tmp_path):
    deep, plain = deep_resnet50(), plain_resnet18()
    half_stem = deep | {"conv1.0.weight": torch.zeros(4, 3, 3, 3)}
    without_shortcut = {name: t for name, t in deep.items() if "downsample.0" not in name}
    attention = deep | {"layer1.0.se.fc1.weight": torch.zeros(1)}
    deeper = {name.replace("layer3.0", "layer3.6"): t for name, t in deep.items()} | deep
    cases = [
        (plain, PLAIN | {"backbone": "resnet50"}, "has backbone resnet18, this run resnet50: pass --backbone resnet18"),
        (
            plain,
            DEEP,
            "stem plain, this run resnet50, deep: pass --backbone resnet18 --stem plain",
        ),
        (plain, PLAIN | {"stem": "deep"}, "has stem plain, this run deep: pass --stem plain"),
        (plain, PLAIN | {"base_width": 64}, "has base_width 8, this run 64: pass --base_width 8"),
        (half_stem, DEEP, "shape of conv1.0.weight is [4, 3, 3, 3], not [8, 3, 3, 3]; the deep stem is that of timm"),
        (without_shortcut, DEEP, "of another kind: there is nothing for layer1.0.downsample.0.weight"),
        (attention, DEEP, "there is no place for layer1.0.se.fc1.weight"),
        (deeper, DEEP, "a backbone with 7 blocks in its third stage is none of resnet18"),
        ({"blocks.0.weight": torch.zeros(1)}, DEEP, "no ResNet in the names of timm and torchvision, but blocks.0"),
        ({"fc.weight": torch.zeros(1)}, DEEP, "but nothing"),
        ({"state_dict": deep}, DEEP, "a.pth is no state dict"),
        ({0: torch.zeros(1)}, DEEP, "a.pth is no state dict"),
        (deep | {"bn1.bias": torch.full((8,), torch.nan)}, DEEP, "a.pth: bn1.bias is not finite"),
        (torch.nn.Linear(1, 1), DEEP, "torch.nn.modules.linear.Linear, and loading that would run code"),
    ]
    path = tmp_path / "a.pth"
    for content, network, message in cases:
        torch.save(content, path)
        assert message in refused(tiny_data, tmp_path, backbone_weights=str(path), **network)
    path.write_bytes(path.read_bytes()[:100])
    assert "damaged" in refused(tiny_data, tmp_path, backbone_weights=str(path), **DEEP)


def test_names_that_lead_nowhere(tiny_data, tmp_path):
    for name, message in (
        (tmp_path / "nowhere.pth", "no such file or folder"),
        ("weights/nowhere.safetensors", "no such file or folder"),
        (tmp_path / "no folder", "no such file or folder"),
        (tmp_path, "no model.safetensors or pytorch_model.bin in it"),
        ("", "is empty"),
        # Tests have no network.
        ("timm/resnet101s.gluon_in1k", "cannot be fetched from the Hub (LocalEntryNotFoundError): mend the connection"),
    ):
        assert message in refused(tiny_data, tmp_path, backbone_weights=str(name))
    assert "or none to start from fresh ones" in refused(
        tiny_data, tmp_path, backbone_weights="timm/resnet101s.gluon_in1k"
    )
    both = {"backbone_weights": "a/b", "initial_model": "a/c"}
    assert "pass one of them" in refused(tiny_data, tmp_path, **both)
    assert "needs --initial_model" in refused(tiny_data, tmp_path, initial_model_revision="main")
    on_disk = {"backbone_weights": str(tmp_path), "backbone_weights_revision": "main"}
    assert "is on this disk" in refused(tiny_data, tmp_path, **on_disk)
    assert "no such file or folder" in refused(tiny_data, tmp_path, initial_model=str(tmp_path / "no where"))
    assert "no config.json in it" in refused(tiny_data, tmp_path, initial_model=str(tmp_path))


@pytest.fixture
def cache(hub, tmp_path, monkeypatch) -> HubServer:
    """The Hub of our own, to download from in this process, with a cache of its own."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def test_backbone_from_the_hub(tiny_data, tmp_path, cache, monkeypatch):
    weights = plain_resnet18()
    (tmp_path / "repo").mkdir()
    save_file(weights, tmp_path / "repo" / "model.safetensors")
    (tmp_path / "repo" / "config.json").write_text('{"architecture": "resnet18"}')
    push_folder(tmp_path / "repo", "user/resnet18", private=True)
    commit = cache.repos["model", "user/resnet18"].branches["main"]
    digest = sha256_of(tmp_path / "repo" / "model.safetensors")
    torch.save(weights | {"conv1.weight": weights["conv1.weight"] + 1}, tmp_path / "repo" / "pytorch_model.bin")
    push_folder(tmp_path / "repo", "user/both")
    (tmp_path / "repo" / "model.safetensors").unlink()
    push_folder(tmp_path / "repo", "user/older", revision="v1")

    trainer = make_trainer(tiny_data, tmp_path / "run", backbone_weights="user/resnet18", **PLAIN)
    assert torch.equal(backbone_of(trainer)["conv1.weight"], weights["conv1.weight"])
    assert trainer.run.initialised_with == {"backbone": "user/resnet18", "commit": commit, "sha256": digest}
    both = make_trainer(tiny_data, tmp_path / "run", backbone_weights="user/both", **PLAIN)
    assert both.run.initialised_with["sha256"] == digest
    older = {"backbone_weights": "user/older", "backbone_weights_revision": "v1"}
    older = make_trainer(tiny_data, tmp_path / "run", **older, **PLAIN)
    assert torch.equal(backbone_of(older)["conv1.weight"], weights["conv1.weight"] + 1)

    (tmp_path / "repo" / "pytorch_model.bin").unlink()
    save_file({name: tensor + 2 for name, tensor in weights.items()}, tmp_path / "repo" / "model.safetensors")
    push_folder(tmp_path / "repo", "user/changed")
    blob = cache.blobs / sha256_of(tmp_path / "repo" / "model.safetensors")
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + b"x")
    told = refused(tiny_data, tmp_path, backbone_weights="user/changed")
    assert "--backbone_weights user/changed: model.safetensors is not what the Hub announced" in told
    blob.write_bytes(good)
    make_trainer(tiny_data, tmp_path / "run", backbone_weights="user/changed", **PLAIN)

    wrong = {"backbone_weights": "user/older", "backbone_weights_revision": "v2"}
    assert "no revision v2; pass a branch" in refused(tiny_data, tmp_path, **wrong)
    for repo in ("user/nothing", "user/resnet18"):
        monkeypatch.setenv("HF_TOKEN", "hf_another")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
        assert "for a private one run `hf auth login`" in refused(tiny_data, tmp_path, backbone_weights=repo)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_test_token")
    push_folder(tmp_path / "bare", "user/bare")
    assert "no model.safetensors or pytorch_model.bin" in refused(tiny_data, tmp_path, backbone_weights="user/bare")
    monkeypatch.setenv("HF_TOKEN", "hf_bröken")
    told = refused(tiny_data, tmp_path, backbone_weights="user/bare")
    assert "cannot be fetched from the Hub" in told and "bröken" not in told


def test_a_run_goes_on_without_its_weights(tiny_data, tmp_path):
    """The file is read at the start and never again; results and card tell of it."""
    path = tmp_path / "a.safetensors"
    save_file(plain_resnet18(), path)
    options = PLAIN | {"backbone_weights": str(path), "save_steps": 1, "keep_checkpoints": 9, "method": "suponly"}
    options |= {"warmup_steps": 0, "learning_rate": 1e-9}
    told = {"backbone": "a.safetensors", "sha256": sha256_of(path)}
    assert plan_run(make_trainer(tiny_data, tmp_path / "run", **options).run)["initialised_with"] == told
    results = make_trainer(tiny_data, tmp_path / "run", **options).train()
    assert results["initialised_with"] == told
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"- initialised with: backbone a.safetensors, sha256 {told['sha256']}" in card and str(tmp_path) not in card
    exported = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.allclose(exported["backbone.conv1.weight"], plain_resnet18()["conv1.weight"], atol=1e-4)

    path.unlink()
    assert make_trainer(tiny_data, tmp_path / "run", **options).train() == results
    for name in ("results.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000003")
    resumed = make_trainer(tiny_data, tmp_path / "run", **options)
    assert resumed.run.initialised_with == told
    assert resumed.train()["initialised_with"] == told
    assert torch.equal(load_file(tmp_path / "run" / "model.safetensors")["backbone.conv1.weight"],
                       exported["backbone.conv1.weight"])  # fmt: skip
    with pytest.raises(InputError, match="belongs to another run: backbone_weights is"):
        make_trainer(tiny_data, tmp_path / "run", **options | {"backbone_weights": "x"})
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(InputError, match="no such file or folder"):
        make_trainer(tiny_data, tmp_path / "run", **options)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> dict:
    """Run folders of short runs: supervised and calibrated since, and U2PL with an auxiliary head."""
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(tiny_data, folder / "suponly", method="suponly", seed=5).train()
    make_trainer(tiny_data, folder / "u2pl", auxiliary_head=True, seed=6).train()
    config = folder / "suponly" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"temperature": 2.5}))
    return {name: folder / name for name in ("suponly", "u2pl")}


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def started(trainer) -> dict[str, torch.Tensor]:
    return trainer.run.student.state_dict()


def test_supervised_model_starts_u2pl(tiny_data, tmp_path, trained, caplog):
    """The representation head is fresh; the teacher becomes the student's copy, as ever."""
    trainer = make_trainer(tiny_data, tmp_path / "run", initial_model=str(trained["suponly"]), warmup_steps=0)
    before, fresh = weights_of(trained["suponly"]), make_trainer(tiny_data, tmp_path / "fresh")
    for name, tensor in started(trainer).items():
        expected = started(fresh)[name] if name.startswith("representation_head.") else before[name]
        assert torch.equal(tensor, expected), name
    told = {"model": "suponly", "sha256": sha256_of(trained["suponly"] / "model.safetensors"),
            "fresh": "representation_head"}  # fmt: skip
    assert trainer.run.initialised_with == told
    trainer.run.method.begin(trainer.run.student, 0)
    teacher = trainer.run.method.teacher.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in started(trainer).items())
    # Training needs logits as they are.
    assert trainer.run.student.config.temperature == trainer.run.method.teacher.config.temperature == 1
    results = trainer.train()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["temperature"] == 1
    assert results["initialised_with"] == told
    assert "- initialised with: model suponly, sha256" in (tmp_path / "run" / "README.md").read_text()


def test_heads_that_are_not_needed_are_left_out(tiny_data, tmp_path, trained):
    """U2PL -> SupOnly: neither representation nor auxiliary head; strides may differ."""
    options = {"method": "suponly", "initial_model": str(trained["u2pl"]), "output_stride": 16}
    trainer = make_trainer(tiny_data, tmp_path / "run", **options)
    before = weights_of(trained["u2pl"])
    assert trainer.run.initialised_with.keys() == {"model", "sha256"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in started(trainer).items())
    assert {name.split(".")[0] for name in before.keys() - started(trainer).keys()} == {
        "representation_head",
        "auxiliary_head",
    }


def test_last_layers_are_fresh_for_other_classes(tiny_data, tmp_path, trained, caplog):
    caplog.set_level("INFO", "u2pl_hf")
    config = json.loads((trained["u2pl"] / "config.json").read_text())
    seven = shutil.copytree(trained["u2pl"], tmp_path / "seven")
    three = shutil.copytree(trained["u2pl"], tmp_path / "three")
    config["id2label"] = {str(i): f"other {i}" for i in range(7)}
    config["label2id"] = {f"other {i}": i for i in range(7)}
    (seven / "config.json").write_text(json.dumps(config))
    config["id2label"], config["label2id"] = {str(i): str(i) for i in range(3)}, {str(i): i for i in range(3)}
    config["palette"] = config["palette"][:3]
    (three / "config.json").write_text(json.dumps(config))
    last = ("classifier.8.", "auxiliary_head.4.")
    save_file({n: t[:3].clone() if n.startswith(last) else t for n, t in weights_of(three).items()},
              three / "model.safetensors", metadata={"format": "pt"})  # fmt: skip

    options = {"initial_model": str(three), "auxiliary_head": True, "aspp_dilations": [2, 3, 4]}
    trainer, fresh = (make_trainer(tiny_data, tmp_path / "run", **o) for o in (options, {"auxiliary_head": True}))
    assert trainer.run.initialised_with["fresh"] == "last layer of classifier and last layer of auxiliary_head"
    for name, tensor in started(trainer).items():
        expected = started(fresh)[name] if name.startswith(last) else weights_of(trained["u2pl"])[name]
        assert torch.equal(tensor, expected), name
    assert "fresh: last layer of classifier, last layer of auxiliary_head" in caplog.text
    assert "learned with --aspp_dilations 1 2 3" in caplog.text
    same = make_trainer(tiny_data, tmp_path / "run", initial_model=str(seven))
    assert torch.equal(started(same)["classifier.8.bias"], weights_of(trained["u2pl"])["classifier.8.bias"])
    assert "as many classes of other names" in caplog.text


def test_models_of_another_architecture(tiny_data, tmp_path, trained):
    model = str(trained["u2pl"])
    for changes, message in (
        ({"backbone": "resnet34"}, "has backbone resnet18, this run resnet34: pass --backbone resnet18"),
        ({"stem": "plain"}, "has stem deep, this run plain: pass --stem deep"),
        ({"base_width": 16}, "has base_width 8, this run 16: pass --base_width 8"),
        ({"head_channels": 4}, "has head_channels 8, this run 4: pass --head_channels 8"),
        ({"representation_channels": 4}, "has representation_channels 8, this run 4: pass --representation_channels 8"),
    ):
        assert message in refused(tiny_data, tmp_path, initial_model=model, **changes)


def test_model_from_the_hub(tiny_data, tmp_path, trained, cache):
    push_folder(trained["suponly"], "user/suponly", revision="v1")
    commit = cache.repos["model", "user/suponly"].branches["v1"]
    options = {"initial_model": "user/suponly", "initial_model_revision": "v1", "method": "suponly"}
    trainer = make_trainer(tiny_data, tmp_path / "run", **options)
    digest = sha256_of(trained["suponly"] / "model.safetensors")
    assert trainer.run.initialised_with == {"model": "user/suponly", "commit": commit, "sha256": digest}
    before = weights_of(trained["suponly"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in started(trainer).items())
    assert "no such folder or Hub model" in refused(tiny_data, tmp_path, initial_model="user/other")
