import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config

from tests.in_process import run_here
from tests.model.test_modeling import narrow_model, scramble
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation import onnx_export
from u2pl_hf.evaluation.onnx_export import export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = narrow_model(palette=[[0, 0, c] for c in range(5)], temperature=1.6).eval()
    scramble(model)
    folder = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "run")
    path = folder / "deep" / "model.onnx"
    done = run_here("export_onnx.py", folder / "run", path)
    assert done.returncode == 0, done.stderr
    return model, path, json.loads(done.stdout)


def test_same_logits_at_image_size_for_any_batch_and_size(exported):
    model, path, found = exported
    assert found["difference"] <= 1e-4 and len(found["sizes"]) == 3
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 33, 47), (3, 3, 65, 65), (2, 3, 150, 34)):
        pixels = torch.randn(shape)
        with torch.no_grad():
            logits = model(pixels).logits.double()
        expected = F.interpolate(logits, shape[-2:], mode="bilinear", align_corners=True).numpy()
        (got,) = session.run(None, {"pixel_values": pixels.numpy()})
        assert got.dtype == np.float32 and got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
        # The probabilities of the calibrated model, which are others than without its temperature.
        probability = [torch.from_numpy(scores).double().softmax(dim=1) for scores in (got, expected, 1.6 * expected)]
        assert (probability[0] - probability[1]).abs().max() < 1e-4 < (probability[0] - probability[2]).abs().max()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == [f"LABEL_{c}" for c in range(5)]
    assert json.loads(metadata["image_mean"]) == [0.485, 0.456, 0.406] and json.loads(metadata["palette"])[4] == [
        0,
        0,
        4,
    ]


def test_another_result_is_not_left_behind(exported, tmp_path, monkeypatch):
    model, path, _ = exported
    written = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda part, **_: shutil.copy(path, part))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: written)
    export_onnx(model, tmp_path / "model.onnx")
    (tmp_path / "model.onnx").unlink()
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differ by") as error:
        export_onnx(model, tmp_path / "model.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_dpt_on_a_vision_transformer(tmp_path):
    backbone = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    model = narrow_model(backbone=backbone, head="dpt", representation_channels=0).eval()
    scramble(model)
    assert export_onnx(model, tmp_path / "model.onnx")["difference"] <= 1e-4
    assert model.backbone.features.config._attn_implementation == "sdpa"
