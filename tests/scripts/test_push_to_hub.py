"""A trained run goes to a Hub over HTTP and is read back: push_to_hub.py, --push_to_hub, checkpoints."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.hub_server import TOKEN
from tests.in_process import ROOT, run_here
from tests.training.test_trainer import make_trainer

SETTINGS = {"max_steps": 4, "eval_steps": 2, "logging_steps": 1, "picture_samples": 1, "queue_length": 50,
            "background_queue_length": 50, "trackers": ["none"]}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tiny"
    make_trainer(tiny_data, output, **SETTINGS).train()
    return output


@pytest.fixture
def here():
    """Runs a script in this process, which is logged in at the test Hub; gives exit code, result and stderr."""

    def start(script: str, *arguments) -> tuple[int, dict | None, str]:
        done = run_here(script, *arguments)
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else None, done.stderr

    return start


def files_of(hub, revision: str = "main", name: str = "user/net") -> dict:
    repo = hub.repos["model", name]
    return repo.commits[repo.branches[revision]]


def content(hub, path: str, revision: str = "main") -> bytes:
    return (hub.blobs / files_of(hub, revision)[path].sha256).read_bytes()


def picture_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files with time and content, to see that nothing has changed."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


READER = """
import hashlib, json, runpy, sys
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained("user/net", revision="seed/0", trust_remote_code=True)
state = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()}
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
print(json.dumps(state))
"""


def test_a_run_is_pushed_and_read_back(hub, run, tiny_data, tmp_path, here):
    """Through errors of the server and a connection that breaks in the middle of the weights."""
    before, environment = picture_of(run), hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
    hub.fail_next(1, 500, "/commit/")
    hub.fail_next(1, 503, "/preupload/")
    hub.drop_next(1, "PUT /lfs/")
    options = ["--repo_id", "user/net", "--revision", "seed/0", "--private"]
    code, told, stderr = here("push_to_hub.py", run, *options)
    assert code == 0, stderr
    repo = hub.repos["model", "user/net"]
    assert told["url"].endswith(repo.branches["seed/0"]) and repo.private and set(repo.branches) == {"main", "seed/0"}
    assert len(repo.commits) == 2 and repo.commits[repo.branches["main"]] == {}  # the empty start, and one commit
    assert picture_of(run) == before

    pushed = files_of(hub, "seed/0")
    picture = "pictures/step-000004.png"
    assert set(pushed) == set(told["files"]) == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results.json", "metrics.jsonl",
        "recipe.yaml", "labeled.txt", "curves.png", picture, *(p.name for p in run.glob("*.py"))}  # fmt: skip
    for name in ("model.safetensors", "metrics.jsonl", "labeled.txt", picture):
        assert content(hub, name, "seed/0") == (run / name).read_bytes()
    card = ModelCard(content(hub, "README.md", "seed/0").decode())
    card.validate()
    assert any("validate-yaml" in request for request in hub.requests)
    assert {result.metric_value for result in card.data.eval_results} == {
        json.loads((run / "results.json").read_text())[which]["mean_iou"] for which in ("best", "last")
    }
    assert 'from_pretrained("user/net", revision="seed/0", trust_remote_code=True)' in card.text
    assert all(name in pushed for name in re.findall(r"\]\((?!http)([^)]+)\)", card.text))
    for name in ("README.md", "results.json", "recipe.yaml"):
        assert str(tiny_data.parent) not in content(hub, name, "seed/0").decode()

    shutil.copy(ROOT / "docs" / "demo.png", tmp_path / "photo.png")
    scripts = [
        [ROOT / "training_scripts" / "evaluate.py", "user/net", "--model_revision", "seed/0", "--dataset", tiny_data],
        [ROOT / "training_scripts" / "predict.py", "user/net", tmp_path / "photo.png", "--model_revision", "seed/0",
         "--output_dir", tmp_path / "out"],
    ]  # fmt: skip
    scripts = json.dumps([[str(word) for word in script] for script in scripts])
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, scripts], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    evaluated, _, state = (json.loads(line) for line in done.stdout.splitlines()[-3:])
    local = load_file(run / "model.safetensors")
    assert state.keys() == local.keys()
    assert state == {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in local.items()}
    code, own, _ = here("evaluate.py", run, "--dataset", tiny_data)
    assert code == 0 and evaluated["mean_iou"] == own["mean_iou"]
    assert evaluated["per_class_iou"] == own["per_class_iou"]
    assert evaluated["model_revision"] == hub.repos["model", "user/net"].branches["seed/0"]
    assert (tmp_path / "out" / "photo_mask.png").is_file()


def test_the_same_again_sends_nothing_and_a_change_sends_itself(hub, run, tmp_path, here):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    push = ["push_to_hub.py", folder, "--repo_id", "user/net"]
    _, first, _ = here(*push)
    hub.requests.clear()
    _, second, _ = here(*push)
    assert second == first and not any("/commit/" in r or "PUT" in r for r in hub.requests)
    # Another branch gets a commit, but no weights: the Hub has them.
    _, third, _ = here(*push, "--revision", "copy")
    assert third["url"] != first["url"] and not any("PUT" in r for r in hub.requests)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    _, fourth, _ = here(*push, "--commit_message", "Another one")
    assert fourth["url"] != first["url"] and sum("PUT" in r for r in hub.requests) == 1
    assert content(hub, "model.safetensors", "copy") == (run / "model.safetensors").read_bytes()


def test_the_best_model(hub, run, here):
    code, told, _ = here("push_to_hub.py", run, "--repo_id", "user/net", "--best")
    assert code == 0 and content(hub, "model.safetensors") == (run / "best" / "model.safetensors").read_bytes()
    facts = json.loads(content(hub, "results.json"))
    assert facts["last"] is None and facts["pictures"] in told["files"] and "recipe.yaml" in told["files"]
    card = content(hub, "README.md").decode()
    assert f"![Image, ground truth, prediction, pseudo-label and entropy of some samples]({facts['pictures']})" in card
    assert (run / "best" / facts["pictures"]).is_file()
    # What training wrote shows the same picture.
    assert f"]({facts['pictures']})" in (run / "best" / "README.md").read_text()


def test_a_checkpoint_goes_on_elsewhere_to_the_same_bits(hub, run, tiny_data, tmp_path, here):
    stopped = tmp_path / "stopped"
    shutil.copytree(run / "checkpoints" / "step-000002", stopped / "checkpoints" / "step-000002")
    shutil.copytree(run / "best", stopped / "best")
    for name in ("recipe.yaml", "labeled.txt", "metrics.jsonl"):
        shutil.copy(run / name, stopped / name)
    push = ["push_to_hub.py", stopped, "--repo_id", "user/net", "--best", "--with_checkpoint"]
    code, told, _ = here(*push)
    assert code == 0 and told["checkpoint"]["revision"] == "main-checkpoint" and told["checkpoint"]["step"] == 2
    assert "checkpoints/step-000002/student.safetensors" not in files_of(hub)
    moved = tmp_path / "moved"
    environment = hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
    download = ["download", "user/net", "--revision", "main-checkpoint", "--local-dir", str(moved)]
    subprocess.run([sys.executable, "-m", "huggingface_hub.cli.hf", *download], env=environment, check=True)
    assert not (moved / "results.json").exists()
    make_trainer(tiny_data, moved, **SETTINGS).train()
    assert (moved / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    # A later checkpoint takes the place of this one.
    shutil.copytree(run / "checkpoints" / "step-000004", stopped / "checkpoints" / "step-000004")
    here(*push)
    steps = {path.split("/")[1] for path in files_of(hub, "main-checkpoint") if path.startswith("checkpoints/")}
    assert steps == {"step-000004"}


def test_training_pushes_at_its_end(hub, run, tiny_data, tmp_path, here):
    options = ["--push_to_hub", "user/net", "--hub_revision", "seed0", "--hub_private", "true"]
    # Nothing but the push is left to do for a finished run.
    code, told, _ = here("train_u2pl.py", run / "recipe.yaml", "--num_workers", "0", *options)
    repo = hub.repos["model", "user/net"]
    assert code == 0 and told["hub"].endswith(repo.branches["seed0"]) and told["hub_error"] is None and repo.private
    fresh = yaml.safe_load((run / "recipe.yaml").read_text()) | {"max_steps": 2, "eval_steps": 0}
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "fresh"
    recipe.write_text(yaml.safe_dump(fresh | {"output_dir": str(output), "num_workers": 0}))
    code, told, stderr = here("train_u2pl.py", recipe, "--push_to_hub", "user/fresh", "--hub_checkpoint", "true")
    assert code == 0 and told["last"]["step"] == 2, stderr
    assert files_of(hub, name="user/fresh")["model.safetensors"].size == (output / "model.safetensors").stat().st_size
    assert "checkpoints/step-000002/state.json" in files_of(hub, "main-checkpoint", "user/fresh")
    assert "hub" not in json.loads((output / "results.json").read_text())


def test_a_failed_push_leaves_the_run_and_tells_how_to_push_later(hub, run, here):
    before = picture_of(run)
    hub.fail_next(4, 503, "/api/repos/create")
    options = ["--num_workers", "0", "--push_to_hub", "user/net", "--hub_private", "true"]
    code, told, stderr = here("train_u2pl.py", run / "recipe.yaml", *options)
    line = stderr.splitlines()[-1]
    assert code == 1 and told["hub"] is None and told["last"]["step"] == 4
    assert line == f"error: the run is finished, but {told['hub_error']}" and "503" in line
    assert picture_of(run) == before and not hub.repos
    _, script, *arguments = shlex.split(re.search(r"later run `(.+)`$", told["hub_error"])[1])
    assert script == "training_scripts/push_to_hub.py"
    code, told, _ = here("push_to_hub.py", *arguments)
    assert code == 0 and hub.repos["model", "user/net"].private


@pytest.mark.parametrize("script", ["push_to_hub.py", "train_u2pl.py"])
def test_a_token_that_the_hub_refuses_is_one_line_without_it(hub, run, here, monkeypatch, script):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    options = [run, "--repo_id", "user/net"]
    if script == "train_u2pl.py":
        options = [run / "recipe.yaml", "--num_workers", "0", "--push_to_hub", "user/net"]
    code, told, stderr = here(script, *options)
    errors = [line for line in stderr.splitlines() if line.startswith("error")]
    assert code == 2 and told is None and len(errors) == 1 and "does not accept the token" in errors[0]
    assert "secret" not in stderr and "Traceback" not in stderr and not hub.repos


def test_refused_in_the_middle(hub, run, here):
    """A token that may log in, but not write there."""
    hub.fail_next(1, 401, "/preupload/")
    code, told, stderr = here("push_to_hub.py", run, "--repo_id", "user/net")
    assert code == 2 and told is None and "does not accept the token" in stderr and "later run `python" in stderr
    assert TOKEN not in stderr


@pytest.mark.parametrize("revision", ["a b", "../x", "refs/heads/x", "-x", "x.lock", "x..y", "/x", "x/", "0" * 40, ""])
def test_branches_that_cannot_be(hub, run, here, revision):
    code, _, stderr = here("push_to_hub.py", run, "--repo_id", "user/net", f"--revision={revision}")
    assert code == 2 and len(stderr.splitlines()) == 1 and "branch" in stderr and not hub.requests


def test_a_public_repository_gets_nothing_private(hub, run, here):
    here("push_to_hub.py", run, "--repo_id", "user/net", "--best")
    commits = len(hub.repos["model", "user/net"].commits)
    code, _, stderr = here("push_to_hub.py", run, "--repo_id", "user/net", "--private")
    assert code == 2 and "already and public" in stderr and len(hub.repos["model", "user/net"].commits) == commits


def test_dry_run_asks_nothing(hub, run, here):
    code, told, _ = here("push_to_hub.py", run, "--repo_id", "user/net", "--with_checkpoint", "--dry_run")
    assert code == 0 and not hub.requests and "url" not in told
    assert told["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert "checkpoints/step-000004/method.safetensors" in told["checkpoint"]["files"]


def test_folders_that_cannot_be_pushed(hub, run, tmp_path, here):
    def refusal(folder, *options) -> str:
        code, _, stderr = here("push_to_hub.py", folder, "--repo_id", "user/net", *options)
        assert code == 2 and len(stderr.splitlines()) == 1 and not hub.requests
        return stderr

    assert "not a folder" in refusal(tmp_path / "nowhere")
    assert "no exported model" in refusal(tmp_path)
    shutil.copytree(run / "best", tmp_path / "unfinished" / "best")
    assert "--best" in refusal(tmp_path / "unfinished")
    assert "no complete checkpoint" in refusal(tmp_path / "unfinished", "--best", "--with_checkpoint")
    assert "no finished run" in refusal(run, "--other_runs", tmp_path)


def test_numbers_survive_the_way_through_json(run):
    """The card's metadata has the bits of results.json."""
    results = json.loads((run / "results.json").read_text())
    values = {result.metric_name: result.metric_value for result in ModelCard.load(run / "README.md").data.eval_results}
    assert values["mIoU (last, step 4)"] == results["last"]["mean_iou"]
    assert torch.tensor(values["mIoU (last, step 4)"]).isfinite()


def test_cards_of_runs_are_collected(run, tmp_path, here):
    code, told, _ = here("render_cards.py", run, "--model_cards", tmp_path)
    assert code == 0 and told == {"cards": ["tiny"], "changed": ["tiny"]}
    assert (tmp_path / "tiny" / "README.md").is_file() and (tmp_path / "tiny" / "curves.png").is_file()
    assert here("render_cards.py", "--model_cards", tmp_path)[1] == {"cards": ["tiny"], "changed": []}
    record = json.loads((tmp_path / "records" / "other.jsonl").read_text())
    assert record["run"] == "tiny" and record["last"] == json.loads((run / "results.json").read_text())["last"]
    code, _, stderr = here("render_cards.py", run / "best", "--model_cards", tmp_path)
    assert code == 2 and "no finished run" in stderr
    code, _, stderr = here("render_cards.py", run, "--model_cards", run / "results.json")
    assert code == 2 and "results.json cannot be written to" in stderr
    code, _, stderr = here("compare.py", run / "best")
    assert code == 2 and "the run's own folder" in stderr


def test_runs_whose_folders_share_a_name_are_told_apart(run, tmp_path, here):
    other = shutil.copytree(run, tmp_path / "again" / run.name)
    code, told, stderr = here("compare.py", run, other, run)
    assert code == 0 and list(told) == [str(run), str(other)] and stderr.count("pictures: ") == 2
    assert str(run) in stderr and str(other) in stderr
    code, told, _ = here("compare.py", run, run)
    assert code == 0 and list(told) == [run.name]
    code, _, stderr = here("render_cards.py", run, other, "--model_cards", tmp_path / "cards")
    assert code == 2 and f"{run} and {other} have one name" in stderr and not (tmp_path / "cards").exists()


@pytest.mark.parametrize("repo_id", ["user/net\n", "user/net\nx", "user/n et", "net"])
def test_names_that_no_repository_can_have(run, tmp_path, here, repo_id):
    code, _, stderr = here("push_to_hub.py", run, "--repo_id", repo_id)
    (last,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2 and last == stderr.splitlines()[-1] and "is not the name of a repository" in last
