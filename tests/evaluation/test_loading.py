import json

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from transformers import ResNetConfig

from tests.hub_server import TOKEN
from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import dataset_commit, load_model
from u2pl_hf.evaluation.mean_iou import BYTE
from u2pl_hf.hub.push import push_folder
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.weights.backbones import backbone_config


def test_commit_of_a_data_set_on_the_hub(hub, tmp_path):
    api = HfApi()
    api.create_repo("user/photos", repo_type="dataset")
    upload = {"repo_id": "user/photos", "repo_type": "dataset", "path_in_repo": "a.txt"}
    first = api.upload_file(path_or_fileobj=b"one", **upload).oid
    second = api.upload_file(path_or_fileobj=b"two", **upload).oid
    assert first != second
    assert dataset_commit("user/photos") == second
    assert dataset_commit("user/photos", first) == first
    assert dataset_commit("user/missing") is None
    assert dataset_commit("demo") is dataset_commit(str(tmp_path)) is None


def test_more_classes_than_a_mask_can_hold_are_refused(tmp_path):
    config = U2PLConfig(backbone="resnet18", base_width=2, head_channels=4, representation_channels=0, num_labels=BYTE)
    U2PLForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="256 classes, and masks are 8-bit: at most 255"):
        load_model(str(tmp_path), device="cpu")


def small_model(folder, **fields):
    fields = {"backbone": "resnet18", "base_width": 2, "head_channels": 4, "representation_channels": 0} | fields
    model = U2PLForSemanticSegmentation(U2PLConfig(num_labels=3, **fields))
    model.save_pretrained(folder)
    return model


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder whose code would leave a trace, for a user who says yes to every question."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    small_model(tmp_path)
    trace = tmp_path / "trace"
    (tmp_path / "theirs.py").write_text(
        f"open({str(trace)!r}, 'w')\nfrom transformers import PreTrainedConfig\n"
        "class C(PreTrainedConfig):\n    model_type = 'theirs'\n"
    )
    change_config(tmp_path, auto_map={name: "theirs.C" for name in ("AutoConfig", "AutoModel", "AutoBackbone")})
    return tmp_path, trace


@pytest.mark.parametrize("kind", ["theirs", None, "bert"])
def test_code_of_a_model_folder_is_not_run(stranger, kind):
    folder, trace = stranger
    change_config(folder, model_type=kind)
    with pytest.raises(InputError, match=rf"its type is {kind!r}, not 'u2pl'"):
        load_model(str(folder), device="cpu")
    with pytest.raises(InputError, match="--backbone "):
        backbone_config(run_arguments(backbone=str(folder)))
    assert not trace.exists()


def test_our_models_need_no_code_of_their_folder(stranger):
    folder, trace = stranger
    assert load_model(str(folder), device="cpu").config.num_labels == 3
    own = ResNetConfig(embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, layer_type="basic")
    small_model(folder, backbone=own)
    nested = json.loads((folder / "config.json").read_text())["backbone_config"]
    change_config(folder, backbone_config=nested | {"auto_map": {"AutoBackbone": "theirs.C", "AutoConfig": "theirs.C"}})
    load_model(str(folder), device="cpu")
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["weight", "bias", "running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, kind, value):
    model = small_model(tmp_path)
    chosen = [name for name in model.state_dict() if name.endswith(kind)][-1]
    model.state_dict()[chosen].view(-1)[-1] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{chosen} in its weights is not finite"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize("fields", [{"id2label": {"0": "a", "2": "b"}}, {"id2label": {"0": "a", "1": 5}},
                                    {"palette": [[1, 2, 3]]}, {"palette": [1]}, {"head_channels": "4"},
                                    {"id2label": None, "num_labels": 10**9}, {"output_stride": None},
                                    {"backbone_config": {"model_type": "nothing"}}])  # fmt: skip
def test_fields_of_a_configuration_that_cannot_be_used(tmp_path, fields):
    small_model(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(InputError, match=rf"model {tmp_path}: ") as caught:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_download_that_is_not_what_was_announced_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model = small_model(tmp_path / "model")
    push_folder(tmp_path / "model", "user/net")
    files = hub.repos["model", "user/net"].commits[hub.repos["model", "user/net"].branches["main"]]
    blob = hub.blobs / files["model.safetensors"].sha256
    good = blob.read_bytes()
    blob.write_bytes(good[:-4] + bytes(4))
    with pytest.raises(InputError, match=r"model user/net: model\.safetensors is not what the Hub announced"):
        load_model("user/net", device="cpu")
    blob.write_bytes(good)
    loaded, sent = load_model("user/net", device="cpu"), hub.sent["user/net"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    load_model("user/net", device="cpu")
    assert hub.sent["user/net"] == sent
