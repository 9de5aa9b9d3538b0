"""An exported folder on a machine where this package is not installed."""

import json
import os
import subprocess
import sys

import torch
from transformers import ConvNextConfig, Dinov2Config

from tests.model.test_modeling import images, narrow_model
from u2pl_hf import U2PLImageProcessor

PROGRAM = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "u2pl_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pixels = torch.load(f"{folder}/pixels.pt", weights_only=True)
    for auto in (AutoModelForSemanticSegmentation, AutoModel):
        model = auto.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            torch.save(model(pixels).logits, f"{folder}/{auto.__name__}.pt")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert processor.post_process_semantic_segmentation(model(pixels), [(7, 9)] * 2)[0].shape == (7, 9)
    model.save_pretrained(f"{folder}/again")
    pipeline("image-segmentation", folder, trust_remote_code=True)
print(json.dumps([type(model).__module__, "u2pl_hf" in sys.modules]))
"""
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "configuration_u2pl.py", "modeling_u2pl.py",
         "backbone_u2pl.py", "dpt_u2pl.py", "image_processing_u2pl.py"}  # fmt: skip


def test_loads_without_the_package(tmp_path):
    backbone = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    dinov2 = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    networks = {"resnet": {}, "convnext": {"backbone": backbone}, "dpt": {"backbone": dinov2, "head": "dpt"}}
    networks["light"] = {"head": "deeplabv3plus_light", "temperature": 0.5}
    for name, fields in networks.items():
        model = narrow_model(**fields).eval()
        model.save_pretrained(tmp_path / name)
        U2PLImageProcessor().save_pretrained(tmp_path / name)
        assert set(os.listdir(tmp_path / name)) == FILES
        torch.save(images(), tmp_path / name / "pixels.pt")
        with torch.no_grad():
            torch.save(model(images()).logits, tmp_path / name / "expected.pt")

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in networks)],
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "not supported for image-segmentation" not in done.stderr
    module, imported = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.") and not imported
    for name in networks:
        expected = torch.load(tmp_path / name / "expected.pt", weights_only=True)
        for auto in ("AutoModelForSemanticSegmentation", "AutoModel"):
            got = torch.load(tmp_path / name / f"{auto}.pt", weights_only=True)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        # What they train and save in turn carries the code on.
        assert (tmp_path / name / "again" / "modeling_u2pl.py").is_file()
        saved = json.loads((tmp_path / name / "again" / "config.json").read_text())
        assert saved["auto_map"]["AutoModel"] == "modeling_u2pl.U2PLForSemanticSegmentation"
