"""The folder of a Space, as the Hub would get and run it."""

import importlib.metadata
import json
import sys

import numpy as np
import pytest
from huggingface_hub import RepoCard
from PIL import Image

from tests.app_server import ROOT, serving
from u2pl_hf.app.space import write_space
from u2pl_hf.constants import default_palette
from u2pl_hf.evaluation.inference import predict_image
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.pictures import colour_mask
from u2pl_hf.hub.push import push_folder

pytest.importorskip("gradio")


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(path)
    return path


def test_pushed_space_runs_from_its_own_files(here, hub, model_dir, example, tmp_path):
    from gradio_client import Client, handle_file

    push_folder(model_dir, "user/net")
    options = ["--repo_id", "user/try", "--private", "--examples", str(example), "--title", "Try it"]
    code, out, err = here("push_space.py", "user/net", *options)
    assert code == 0, err
    # In a process of its own: transformers keeps the Hub's address that it found when it was imported.
    environment = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    environment.pop("PYTHONPATH", None)
    space = hub.repos["space", "user/try"]
    result = json.loads(out)
    assert result == {"model": "user/net", "url": f"{hub.url}/spaces/user/try/commit/{space.branches['main']}"}
    assert space.private
    folder = tmp_path / "container"
    for path, file in space.commits[space.branches["main"]].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((hub.blobs / file.sha256).read_bytes())
    (folder / "u2pl_hf" / "version.py").open("a").write("import sys\nprint('from the copy', file=sys.stderr)\n")
    with serving(tmp_path / "log", ["app.py"], env=environment, cwd=folder) as url:
        client = Client(url, verbose=False, download_files=tmp_path / "got", analytics_enabled=False)
        assert "Try it" in json.dumps(client.config)
        classes = client.predict(handle_file(example), 0.5, 0.2, api_name="/segment")[2]
    assert "from the copy" in (tmp_path / "log").read_text()
    ids = predict_image(load_model(str(model_dir), device="cpu"), np.asarray(Image.open(example)), "cpu")
    assert np.array_equal(np.asarray(Image.open(classes)), colour_mask(ids, default_palette(4)))


def test_folder(here, model_dir, example, tmp_path):
    code, out, err = here("push_space.py", model_dir, "--output_dir", tmp_path / "s", "--examples", example, example)
    assert code == 0 and json.loads(out)["folder"] == str(tmp_path / "s"), err
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"README.md", "requirements.txt", "app.py", "u2pl_hf", "model", "examples"}
    card = RepoCard.load(tmp_path / "s" / "README.md").data
    assert (card.sdk, card.app_file, card.license) == ("gradio", "app.py", "apache-2.0")
    assert card.sdk_version == importlib.metadata.version("gradio") and card.to_dict().get("models") is None
    assert card.python_version == "{}.{}".format(*sys.version_info)
    lines = (tmp_path / "s" / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("--extra-index-url") and all("==" in line and "+" not in line for line in lines[1:])
    assert f"numpy=={importlib.metadata.version('numpy')}" in lines and not any("gradio" in line for line in lines)
    copied = {path.relative_to(tmp_path / "s") for path in (tmp_path / "s" / "u2pl_hf").rglob("*") if path.is_file()}
    own = {p.relative_to(ROOT) for p in (ROOT / "u2pl_hf").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert copied == own
    assert (tmp_path / "s" / "model" / "model.safetensors").read_bytes() == (
        model_dir / "model.safetensors"
    ).read_bytes()


def test_card_names_the_model(tmp_path):
    write_space(tmp_path / "s", "user/net", "v1", None, 1024, [])
    card = RepoCard.load(tmp_path / "s" / "README.md")
    assert card.data.models == ["user/net"] and card.data.title == "user/net"
    assert "'user/net', '--title', 'user/net', " in (app := (tmp_path / "s" / "app.py").read_text())
    assert "'--model_revision', 'v1'" in app and "--examples" not in app


def test_script_refuses(refused, hub, model_dir, tmp_path):
    assert "--repo_id" in refused("push_space.py", model_dir)
    assert "already there" in refused("push_space.py", model_dir, "--output_dir", tmp_path)
    assert "USER/NAME" in refused("push_space.py", model_dir, "--repo_id", "name")
    new = ["push_space.py", model_dir, "--output_dir"]
    assert "--private says nothing without --repo_id" in refused(*new, tmp_path / "s", "--private")
    assert "cannot be written to" in refused(*new, model_dir / "config.json" / "s")
    assert "nowhere" in refused("push_space.py", tmp_path / "nowhere", "--output_dir", tmp_path / "s")
    hub.fail_next(1, status=403)
    assert "cannot log in" in refused("push_space.py", model_dir, "--repo_id", "user/try")
    assert not (tmp_path / "s").exists() and not hub.repos
