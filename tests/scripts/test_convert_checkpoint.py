"""Checkpoints as the published code writes them, through the real script, and every file that is none."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from tests.in_process import ROOT, run_here
from tests.model.test_dpt import published as published_dpt
from tests.published import assert_outputs, load_case, narrow_state_dict
from tests.scripts.test_train import EXPORTED
from u2pl_hf import U2PLImageProcessor
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.training.run.checkpoint import sha256_of
from u2pl_hf.training.weights.published_checkpoints import convert_checkpoint, read_published
from u2pl_hf.training.weights.weights_file import read_weights_file

SCRIPT = ROOT / "training_scripts" / "convert_checkpoint.py"
FILES = sorted(EXPORTED)
FORMS = ["both", "teacher", "student", "bare"]
# What both networks of a narrow file have, and the names of this model for them.
SAME = {
    "encoder.conv1.6.weight": "backbone.conv1.6.weight",
    "encoder.layer3.5.bn3.running_var": "backbone.layer3.5.bn3.running_var",
    "decoder.aspp.conv4.0.weight": "aspp.branches.2.0.weight",
    "decoder.classifier.8.bias": "classifier.8.bias",
    "decoder.representation.8.weight": "representation_head.8.weight",
}


def prefixed(state_dict: dict, prefix: str = "module.") -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state_dict.items()}


def content_of(form: str, teacher: dict, student: dict) -> dict:
    """What the published code gives to torch.save; its best mIoU is a number of numpy's."""
    if form == "bare":
        return teacher
    facts = {"epoch": 80, "best_miou": np.float64(0.7916), "optimizer_state": {"state": {}, "param_groups": []}}
    networks = {"both": {"model_state": student, "teacher_state": teacher}, "teacher": {"teacher_state": teacher},
                "student": {"model_state": student}}  # fmt: skip
    return facts | networks[form]


@pytest.fixture(scope="module")
def narrow() -> dict:
    return narrow_state_dict()


@pytest.fixture
def run():
    """Runs the script in this process: exit code, stdout, stderr."""

    def run_script(*arguments) -> tuple[int, str, str]:
        done = run_here("convert_checkpoint.py", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run_script


def test_voc_r50_as_published(tmp_path):
    """A process of its own; the student differs, so the right outputs are the teacher's."""
    teacher, expected, seed = load_case("model_voc_r50")
    # Zeros that take no space in the file.
    student = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in teacher.items()}
    torch.save(content_of("both", prefixed(teacher), prefixed(student)), tmp_path / "ckpt.pth")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, SCRIPT, "ckpt.pth", "out/model"], capture_output=True, text=True, env=env,
                          cwd=tmp_path, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "21 classes: taken for those of --dataset voc; pass --class_names FILE if they are others"
    ]
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out" / "model")
    assert_outputs(model, expected, seed)
    assert json.loads(done.stdout) == {
        "output_dir": str(tmp_path / "out" / "model"),
        "backbone": "resnet50",
        "num_labels": 21,
        "parameters": sum(p.numel() for p in model.parameters()),
        "file": "ckpt.pth",
        "sha256": sha256_of(tmp_path / "ckpt.pth"),
        "weights": "teacher",
        "epoch": 80,
        "best_miou": 0.7916,
        "class_names_of": "voc, by their number",
    }
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == FILES
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("case", "form", "prefix", "dataset"),
    [("model_cityscapes_r101", "teacher", "", "cityscapes"), ("model_voc_suponly_r101", "student", "module.", "voc")],
)
def test_r101_in_the_names_of_published_files(tmp_path, run, case, form, prefix, dataset):
    """What the networks compute, tests/model/test_golden.py compares."""
    state_dict = prefixed(narrow_state_dict(case=case), prefix)
    torch.save(content_of(form, state_dict, state_dict), tmp_path / "ckpt.pth")
    code, stdout, stderr = run(tmp_path / "ckpt.pth", tmp_path / "out", "--dataset", dataset)
    result = json.loads(stdout)
    assert (code, stderr, result["weights"], result["backbone"]) == (0, "", form, "resnet101")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert len(model.state_dict()) == len(state_dict)
    first = {"voc": "background", "cityscapes": "road"}[dataset]
    assert model.config.id2label[0] == first and model.config.label2id[first] == 0
    assert model.config.palette[1] == {"voc": [128, 0, 0], "cityscapes": [244, 35, 232]}[dataset]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "prefix"), [("zip", "module."), ("zip", ""), ("legacy", "module."), ("safetensors", "module.")]
)
def test_every_form_of_a_file(tmp_path, narrow, form, prefix, kind):
    student = {name: tensor + 1 for name, tensor in narrow.items()}
    networks = [prefixed(network, prefix) for network in (narrow, student)]
    path = tmp_path / f"ckpt.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        content = {k: v for k, v in content_of(form, *networks).items() if k in ("teacher_state", "model_state")}
        flat = {f"{key}.{name}": t for key, network in content.items() for name, t in network.items()}
        save_file(flat if form != "bare" else networks[0], path)
    else:
        torch.save(content_of(form, *networks), path, _use_new_zipfile_serialization=kind == "zip")
    result = convert_checkpoint(path, tmp_path / "out")
    assert result["weights"] == {"both": "teacher", "bare": "unnamed"}.get(form, form)
    has_facts = kind != "safetensors" and form != "bare"
    assert (result["epoch"], result["best_miou"]) == ((80, 0.7916) if has_facts else (None, None))
    written = load_file(tmp_path / "out" / "model.safetensors")
    chosen = student if form == "student" else narrow
    assert len(written) == len(narrow) and all(t.dtype in (torch.float32, torch.int64) for t in written.values())
    for published, ours in SAME.items():
        assert torch.equal(written[ours], chosen[published]), ours


def test_the_network_that_was_asked_for(tmp_path, narrow):
    student = {name: tensor + 1 for name, tensor in narrow.items()}
    torch.save(content_of("both", narrow, student), tmp_path / "both.pth")
    torch.save(content_of("student", narrow, student), tmp_path / "student.pth")
    torch.save(narrow, tmp_path / "bare.pth")
    chosen, _ = read_published(tmp_path / "both.pth", "student")
    assert torch.equal(chosen["encoder.bn1.bias"], student["encoder.bn1.bias"])
    for name, asked, message in (
        ("student.pth", "teacher", "holds no teacher, but student: pass --weights auto"),
        ("bare.pth", "student", "holds no student, but unnamed"),
    ):
        with pytest.raises(InputError, match=message):
            read_published(tmp_path / name, asked)


def test_the_folder_is_like_one_of_training(tmp_path, narrow):
    (tmp_path / "classes.txt").write_text("".join(f"thing {i},{i},{2 * i},{3 * i}\n" for i in range(21)))
    torch.save(content_of("both", narrow, narrow), tmp_path / "ckpt.pth")
    options = {"class_names": tmp_path / "classes.txt", "output_stride": 16, "aspp_dilations": [2, 4, 6]}
    convert_checkpoint(tmp_path / "ckpt.pth", tmp_path / "out", **options)
    model = load_model(str(tmp_path / "out"), device="cpu")
    config = model.config
    assert (config.output_stride, list(config.aspp_dilations)) == (16, [2, 4, 6])
    assert (config.backbone, config.stem, config.base_width, config.head_channels) == ("resnet50", "deep", 8, 32)
    assert (config.id2label[20], config.palette[20]) == ("thing 20", [20, 40, 60])
    trained = type(model)(config)
    trained.save_pretrained(tmp_path / "trained")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "trained"))
    assert ours == theirs
    U2PLImageProcessor().save_pretrained(tmp_path / "trained")
    names = ("out", "trained")
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean == [0.485, 0.456, 0.406]
    assert len({(tmp_path / name / "preprocessor_config.json").read_text() for name in names}) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    facts = ("`ckpt.pth`", sha256_of(tmp_path / "ckpt.pth"), "its teacher", "| epoch | 80 |", "| best mIoU | 0.7916 |",
             "| class names | classes.txt |", "| output stride | 16 |", "| dilations of ASPP | 2 4 6 |",
             "into 21 classes")  # fmt: skip
    assert all(fact in card for fact in facts), card
    assert "trained from" not in card and ModelCard(card).data.license is None


def test_classes_are_assumed_only_where_their_number_says_so(tmp_path, narrow, run, caplog):
    path = tmp_path / "ckpt.pth"
    torch.save(narrow, path)
    assert run(path, tmp_path / "none", "--dataset", "none")[0] == 0
    assert load_model(str(tmp_path / "none"), device="cpu").config.id2label[20] == "class_20"
    seven = {name: t[:7] if name.startswith("decoder.classifier.8.") else t for name, t in narrow.items()}
    torch.save(seven, path)
    assert run(path, tmp_path / "seven")[0] == 0
    assert "7 classes without names" in caplog.messages[-1]
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    for options, message in (
        (["--dataset", "voc"], "--dataset voc has 21 classes, the checkpoint 7"),
        (["--class_names", tmp_path / "three.txt"], "three.txt has 3 classes, the checkpoint 7"),
        (["--class_names", tmp_path / "three.txt", "--dataset", "voc"], "pass one of them"),
        (["--class_names", tmp_path / "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--aspp_dilations", "1", "2", "0"], "three positive numbers"),
    ):
        code, stdout, stderr = run(path, tmp_path / "refused", *options)
        assert code == 2 and not stdout and len(stderr.splitlines()) == 1 and message in stderr
    assert not (tmp_path / "refused").exists()


def test_numbers_of_older_numpy_are_read(tmp_path):
    """numpy 1 calls what rebuilds a number by another name."""
    torch.save({"best_miou": np.float64(0.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for item in new.infolist():
            record = new.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core" in record or b"numpy.core" in record
                record = record.replace(b"numpy._core", b"numpy.core")
            old.writestr(item, record)
    assert read_weights_file(tmp_path / "old.pth") == {"best_miou": 0.5}


class _Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def damaged_files(folder: Path, state_dict: dict) -> dict[Path, str]:
    """Files that are no checkpoints, and what is said of each."""
    whole = folder / "whole.pth"
    torch.save(state_dict, whole)
    content = whole.read_bytes()
    save_file(state_dict, folder / "whole.safetensors")
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    raw = {
        "short.pth": (content[: len(content) // 2], "is damaged, cut short, or was not written by torch.save"),
        "flipped.pth": (bytes(flipped), "in it is not as it was written"),
        "empty.pth": (b"", "is damaged, cut short"),
        "text.pth": (b"hello\n", "is damaged, cut short"),
        "short.safetensors": ((folder / "whole.safetensors").read_bytes()[:-8], "is damaged, cut short"),
    }
    for name, (data, _) in raw.items():
        (folder / name).write_bytes(data)
    saved = {
        "code.pth": ({"teacher_state": _Harmful()}, "posix.system, and loading that would run code"),
        "module.pth": (torch.nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d, and loading that would run code"),
        "tensor.pth": (torch.zeros(3), "holds a Tensor, not a checkpoint"),
        "other.pth": ({"epoch": 3, "net": {}}, "no teacher_state or model_ema or model_state or model, but epoch, net"),
        "nothing.pth": ({}, "but nothing"),
        "text_inside.pth": ({"teacher_state": "x"}, "its teacher is no state dict of tensors"),
    }
    for name, (data, _) in saved.items():
        torch.save(data, folder / name)
    told = {folder / name: message for name, (_, message) in (raw | saved).items()}
    return told | {folder / "nowhere.pth": "no such file", folder: "no such file"}


def wrong_networks(narrow: dict) -> dict[str, tuple[dict, str]]:
    """Networks that are not the published one, and what is said of each."""
    without = {name: t for name, t in narrow.items() if not name.startswith("decoder.low_conv")}
    tail = {name.replace("classifier", "tail"): t for name, t in narrow.items()}
    aux = narrow | {"auxor.aux.4.weight": torch.zeros(21, 32, 1, 1)}
    wide = narrow | {"decoder.aspp.conv3.0.weight": torch.zeros(32, 256, 5, 5)}
    heads = narrow | {"decoder.classifier.8.bias": torch.zeros(19)}
    blocks = {name: t for name, t in narrow.items() if not name.startswith("encoder.layer3.5")}
    swin = {f"encoder.patch_embed.{name}": t for name, t in narrow.items() if name.startswith("encoder.")}
    swin |= {name: t for name, t in narrow.items() if not name.startswith("encoder.")}
    infinite = narrow | {"encoder.bn1.bias": torch.full((16,), torch.inf)}
    more = {name: t + 1 for name, t in narrow.items() if name.endswith("classifier.8.bias")}
    return {
        "missing": (without, "there is nothing for low_level.0.weight, low_level.0.bias"),
        "AEL": (tail, "not parameters of a published U2PL network: decoder.tail.0.bias"),
        "half a head": (aux, "there is nothing for auxiliary_head.0.weight"),
        "kernel": (wide, "the shape of aspp.branches.1.0.weight is [32, 256, 5, 5], not [32, 256, 3, 3]"),
        "bias": (heads, "the shape of classifier.8.bias is [19], not [21]"),
        "flat": (narrow | {"decoder.classifier.8.weight": torch.zeros(3)}, "is no convolution: its shape is [3]"),
        "depth": (blocks, "5 blocks in its third stage"),
        "swin": (swin, "no ResNet in the names of timm and torchvision, but patch_embed."),
        "not finite": (infinite, "backbone.bn1.bias holds numbers that are not finite"),
        "twice": (narrow | prefixed(more), "with and without the prefix"),
        "converted": ({"backbone.conv1.0.weight": torch.zeros(3)}, "backbone.conv1.0.weight"),
    }


def test_files_that_are_no_checkpoints(tmp_path, narrow, run, monkeypatch):
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    for path, message in damaged_files(tmp_path / "files", narrow).items():
        code, stdout, stderr = run(path, tmp_path / "out")
        assert code == 2 and not stdout and len(stderr.splitlines()) == 1, stderr
        assert message in stderr and str(path) in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_networks_that_are_others(tmp_path, narrow):
    for state_dict, message in wrong_networks(narrow).values():
        torch.save({"teacher_state": state_dict}, tmp_path / "ckpt.pth")
        with pytest.raises(InputError) as error:
            convert_checkpoint(tmp_path / "ckpt.pth", tmp_path / "out")
        assert message in str(error.value) and "\n" not in str(error.value)
    fewer = {name: t[:19] if name.startswith("decoder.classifier.8.") else t for name, t in narrow.items()}
    torch.save({"teacher_state": narrow, "model_state": prefixed(fewer)}, tmp_path / "two.pth")
    with pytest.raises(InputError, match="different classes, a teacher with 21, a student with 19: choose one"):
        convert_checkpoint(tmp_path / "two.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert convert_checkpoint(tmp_path / "two.pth", tmp_path / "out", weights="student")["num_labels"] == 19


def test_folders_that_hold_something(tmp_path, narrow, run):
    path, out = tmp_path / "ckpt.pth", tmp_path / "out"
    torch.save(narrow, path)
    assert run(path, out)[0] == 0
    before = (out / "model.safetensors").read_bytes()
    torch.save({name: t + 1 for name, t in narrow.items()}, path)
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for folder, options, message in (
        (out, [], "is not empty: pass another folder, or --overwrite"),
        (tmp_path / "file" / "below", [], "is a file"),
        (tmp_path / "run", ["--overwrite"], "holds more than an exported model, such as checkpoints"),
    ):
        code, stdout, stderr = run(path, folder, *options)
        assert code == 2 and not stdout and message in stderr
    assert (out / "model.safetensors").read_bytes() == before
    save_file(narrow, out / "model.safetensors")
    assert "would be overwritten" in run(out / "model.safetensors", out, "--overwrite")[2]
    assert run(path, out, "--overwrite")[0] == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert sorted(entry.name for entry in out.iterdir()) == FILES
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ckpt.pth", "file", "out", "run"]


def test_a_failed_write_leaves_nothing(tmp_path, narrow, monkeypatch):
    torch.save(narrow, tmp_path / "ckpt.pth")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("u2pl_hf.training.run.model_folder.render_model_card", full)
    with pytest.raises(InputError, match="No space left on device"):
        convert_checkpoint(tmp_path / "ckpt.pth", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ckpt.pth"]


def test_unimatch_v2_is_converted_from_its_average(tmp_path):
    weights = published_dpt()[0]
    average = {f"module.{name}": tensor for name, tensor in weights.items()}
    content = {"model": {name: 0 * tensor for name, tensor in average.items()}, "model_ema": average, "epoch": 59}
    torch.save(content | {"previous_best": 79.1, "previous_best_ema": 79.5}, tmp_path / "best.pth")
    with pytest.raises(InputError, match=r"are of DeepLabv3.*best\.pth holds DPT: leave them out"):
        convert_checkpoint(tmp_path / "best.pth", tmp_path / "out", output_stride=16)
    done = run_here("convert_checkpoint.py", tmp_path / "best.pth", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["weights"], facts["epoch"], facts["best_miou"]) == ("teacher", 59, 79.5)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.classifier[2].weight, weights["head.scratch.output_conv.2.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(head dpt)" in card and "published UniMatch V2 code: its teacher" in card and "ASPP" not in card
