"""What is installed: the program u2pl, recipes and tables by name from anywhere, names that are imported later."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import u2pl_hf
from tests.in_process import ROOT
from u2pl_hf import commands
from u2pl_hf.errors import InputError
from u2pl_hf.resources import find_resource, resource_folder
from u2pl_hf.training.recipe.recipe_file import read_recipe

BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
LIGHT = """
import sys, u2pl_hf
heavy = {"datasets", "albumentations", "evaluate", "gradio", "cv2", "pyarrow"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert u2pl_hf.predict.__module__ == "u2pl_hf.evaluation.inference"
"""


def test_a_wheel_holds_recipes_tables_and_the_program(tmp_path):
    for name in ("u2pl_hf", "training_scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    for kind in ("recipes", "tables"):
        files = {f"u2pl_hf/{kind}/{path.name}" for path in (ROOT / "training_scripts" / kind).glob("*.yaml")}
        assert files and files <= names
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "u2pl_hf").rglob("*.py")}
    assert code <= names and not any(name.startswith("training_scripts") for name in names)
    assert "u2pl = u2pl_hf.commands:main" in entry_points


def test_recipes_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = read_recipe(Path("own_data_u2pl"))
    assert by_name == read_recipe(resource_folder("recipes") / "own_data_u2pl.yaml") and by_name
    for path in resource_folder("tables").glob("*.yaml"):
        assert find_resource(Path(path.stem), "tables") == path
    # A folder of that name, such as a run's, is none; a file is.
    (tmp_path / "demo_suponly").mkdir()
    assert read_recipe(Path("demo_suponly"))["method"] == "suponly"
    (tmp_path / "demo_u2pl").write_text("method: suponly\n")
    assert read_recipe(Path("demo_u2pl")) == {"method": "suponly"}
    with pytest.raises(InputError, match="own_data_u2p is neither a file nor one of the recipes, such as own"):
        read_recipe(Path("own_data_u2p"))
    with pytest.raises(InputError, match=r"own_data_u2pl.yaml does not exist"):
        read_recipe(Path("own_data_u2pl.yaml"))


def test_the_program_lists_its_commands_and_runs_them(capsys):
    commands.main([])
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in commands.COMMANDS)
    commands.main(["--version"])
    assert capsys.readouterr().out == f"{u2pl_hf.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        commands.main(["predict", "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: u2pl predict ")
    with pytest.raises(SystemExit) as ended:
        commands.main(["predit", "--help"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: u2pl has no command predit; did you mean predict?\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_is_a_module_with_a_script(name):
    module = name.replace("-", "_")
    assert (ROOT / "u2pl_hf" / "commands" / f"{module}.py").is_file()
    scripts = [script.read_text() for script in (ROOT / "training_scripts").glob("*.py")]
    assert sum(f"from u2pl_hf.commands.{module} import main" in text for text in scripts) == 1


def test_importing_the_package_is_light():
    subprocess.run([sys.executable, "-c", LIGHT], check=True, env={"PYTHONPATH": str(ROOT)})
    assert {"predict", "train"} <= set(u2pl_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        u2pl_hf.nothing  # noqa: B018


def test_predict_takes_files_images_and_arrays(tmp_path):
    from PIL import Image

    from tests.app_server import NAMES, tiny_model
    from u2pl_hf.evaluation.inference import predict_images

    model = tiny_model()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    model.save_pretrained(tmp_path / "net")
    found = u2pl_hf.predict(model, pixels)
    ids, confidence = predict_images(model, [pixels], "cpu", with_confidence=True)
    assert found.labels.shape == found.entropy.shape == found.confidence.shape == (40, 60)
    assert np.array_equal(found.labels, ids[0]) and np.abs(255 * found.confidence - confidence[0]).max() <= 0.5
    np.testing.assert_allclose(found.confidence, 1 - found.entropy / np.log(len(NAMES)), atol=1e-6)
    assert found.mode == "whole" and found.class_names == NAMES
    assert found.overlay().size == (60, 40) and found.overlay(legend=True).height > 40
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(pixels)):
        assert np.array_equal(u2pl_hf.predict(str(tmp_path / "net"), image, device="cpu").labels, found.labels)
    slid = u2pl_hf.predict(model, pixels, max_whole_pixels=100, window=33)
    assert slid.mode == "slide"
    assert np.array_equal(slid.labels, predict_images(model, [pixels], "cpu", mode="slide", window=33)[0][0])
    for wrong, message in ((pixels[..., 0], r"uint8 \(40, 60\): pass RGB"), (pixels / 255, "float64"),
                           (Image.fromarray(np.ones((4, 4), np.float32)), "floating-point")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            u2pl_hf.predict(model, wrong)
