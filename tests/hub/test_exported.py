"""Which files go to the Hub, and what they say."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image

from tests.hub.test_model_card import RESULTS
from u2pl_hf.errors import InputError
from u2pl_hf.files import sha256_of
from u2pl_hf.hub.exported import exported_files
from u2pl_hf.hub.model_card import render_model_card
from u2pl_hf.hub.results import public_facts
from u2pl_hf.measure.collection import add_run, read_records, write_collection
from u2pl_hf.training.run.upload import RunPush


@pytest.fixture
def folder(tmp_path):
    """A run's folder with everything that one may hold; weights are not read."""
    folder = tmp_path / "home" / "run"
    (folder / "pictures").mkdir(parents=True)
    results = RESULTS | {"pictures": "pictures/step-001200.png", "curves": "curves.png", "output_dir": str(folder)}
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                 "model.safetensors.index.json", "preprocessor_config.json", "modeling_u2pl.py", "metrics.jsonl",
                 "labeled.txt", "pictures/step-001200.png", "pictures/step-000600.png", "curves.png", "wandb_id.txt",
                 ".lock", "not_finite_0.json", "notes.txt", "model.safetensors.bak"):  # fmt: skip
        (folder / name).write_text(name)
    for name in ("tensorboard/events", "wandb/x", "checkpoints/step-001200/student.safetensors", ".model.partial/x",
                 "best/model.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    recipe = {"dataset": "someone/streets", "output_dir": str(folder), "unlabelled_dataset": [str(tmp_path / "more")]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"seed": 3}))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "README.md").write_text(render_model_card(results))
    return folder


def test_only_what_belongs_to_the_model_goes(folder):
    files = exported_files(folder, "user/net")
    assert set(files) == {
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "preprocessor_config.json", "modeling_u2pl.py", "README.md", "results.json",
        "metrics.jsonl", "recipe.yaml", "labeled.txt", "curves.png", "pictures/step-001200.png",
        ".eval_results/mean_iou.yaml"}  # fmt: skip
    assert files["metrics.jsonl"] == folder / "metrics.jsonl"


def test_no_path_of_this_machine_goes(folder, tmp_path):
    files = exported_files(folder, "user/net")
    for name in ("results.json", "recipe.yaml", "README.md"):
        assert str(tmp_path) not in files[name].decode()
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe == {"dataset": "someone/streets", "output_dir": "run", "unlabelled_dataset": ["more"], "seed": 3}
    assert str(tmp_path) in (folder / "recipe.yaml").read_text()


def test_scores_in_the_form_of_eval_results(folder):
    content = exported_files(folder, "user/net")[".eval_results/mean_iou.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("someone/streets", "default", 0.41236)
    assert "validation" in entry.notes and "slide" in entry.notes
    # Not of a data set that the Hub does not have.
    (folder / "results.json").write_text(json.dumps(RESULTS | {"dataset": "demo"}))
    assert ".eval_results/mean_iou.yaml" not in exported_files(folder, "user/net")


def test_the_card_says_where_it_lies(folder):
    card = exported_files(folder, "user/net", "v1")["README.md"].decode()
    assert 'from_pretrained("user/net", revision="v1", trust_remote_code=True)' in card
    assert "PATH_OR_ID" in (folder / "README.md").read_text()


def test_an_edited_card_stays(folder):
    own = (folder / "README.md").read_text() + "\nTaken on a rainy day.\n"
    (folder / "README.md").write_text(own)
    card = exported_files(folder, "user/net")["README.md"].decode()
    assert card == own.replace('"PATH_OR_ID_OF_THIS_FOLDER"', '"user/net"') and "rainy" in card


def test_a_card_that_is_gone_is_rendered(folder):
    (folder / "README.md").unlink()
    assert "| sky | 15.00 | 12.47 |" in exported_files(folder, "user/net")["README.md"].decode()


def test_pictures_that_are_gone_are_not_shown(folder):
    (folder / "curves.png").unlink()
    (folder / "pictures" / "step-001200.png").unlink()
    files = exported_files(folder, "user/net")
    assert "![" not in files["README.md"].decode() and "curves.png" not in files


def test_a_converted_model(tmp_path):
    """Without results.json the card is what there is."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    with pytest.raises(InputError, match="no card"):
        exported_files(tmp_path, "user/net")
    origin = {"file": "best.pth", "sha256": "ab" * 32, "weights": "teacher", "epoch": 79, "best_miou": 73.5,
              "class_names_of": "voc", "output_stride": 8, "aspp_dilations": [12, 24, 36]}  # fmt: skip
    (tmp_path / "README.md").write_text(render_model_card({"class_names": ["a", "b"], "converted_from": origin}))
    files = exported_files(tmp_path, "user/net")
    card = files["README.md"].decode()
    assert set(files) == {"config.json", "model.safetensors", "README.md"} and '"user/net", trust' in card
    assert "its teacher" in card and "| epoch | 79 |" in card and "| dilations of ASPP | 12 24 36 |" in card
    assert ModelCard(card).data.license is None


def test_facts_that_cannot_be_read(folder):
    for content in ("{", "[1]"):
        (folder / "results.json").write_text(content)
        with pytest.raises(InputError, match=r"results\.json"):
            exported_files(folder, "user/net")


@pytest.mark.parametrize("path", ["/home/me/data/camvid", "~/camvid", "../camvid", "C:\\me\\camvid"])
def test_paths_become_names(path):
    command = f"accelerate launch train.py '{path}/r.yaml' --dataset '{path}' --x='{path}' --split 1/8 --seed 3"
    facts = {
        "dataset": path,
        "split": f"{path}/46/labeled.txt",
        "command": command,
        "initialised_with": {"model": path},
        "class_names": ["/"],
        "output_dir": "runs/x",
        "seed": 3,
    }
    public = public_facts(facts)
    assert public == {
        "dataset": "camvid",
        "dataset_on_hub": False,
        "split": "46/labeled.txt",
        "command": "accelerate launch train.py r.yaml --dataset camvid --x=camvid --split 1/8 --seed 3",
        "initialised_with": {"model": "camvid"},
        "class_names": ["/"],
        "output_dir": "x",
        "seed": 3,
    }
    assert public_facts(public) == public


def test_a_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "camvid").mkdir(parents=True)
    assert public_facts({"dataset": "data/camvid"})["dataset"] == "camvid"
    # What the run knew counts, wherever the card is rendered.
    assert public_facts({"dataset": "data/other", "dataset_on_hub": False})["dataset"] == "other"
    assert public_facts({"dataset": "data/camvid", "dataset_on_hub": True})["dataset"] == "data/camvid"


def test_a_collection_of_runs(folder, tmp_path):
    for name in ("curves.png", "pictures/step-001200.png"):
        Image.new("RGB", (20, 10), (200, 30, 90)).save(folder / name)
    collection = tmp_path / "cards"
    add_run(folder, collection)
    first, second = collection / "run", folder.with_name("other")
    folder.rename(second)
    other = json.loads((second / "results.json").read_text()) | {"seed": 4, "last": RESULTS["last"] | {"mean_iou": 0.5}}
    (second / "results.json").write_text(json.dumps(other))
    add_run(second, collection, pictures=True)
    assert len(write_collection(collection)) == 2 and write_collection(collection) == []
    card = (first / "README.md").read_text()
    assert "| u2pl | **3** 4 | 45.62 | 6.20 | 43.00 |" in card
    assert "curves.png" in card and "step-001200.png" not in card and not (first / "pictures").exists()
    assert (collection / "other" / "pictures" / "step-001200.png").is_file()
    assert read_records(collection)["other"] == public_facts(other) and list(read_records(collection)) == [
        "other",
        "run",
    ]
    assert all(str(tmp_path) not in path.read_text() for path in collection.rglob("*.[jm]*"))
    assert Image.open(first / "curves.png").convert("RGB").getpixel((5, 5)) == (200, 30, 90)
    with pytest.raises(InputError, match="no finished run"):
        add_run(tmp_path, collection)
    # Again, and this time without pictures: what is shown is what the run has now.
    (second / "results.json").write_text(json.dumps(other | {"pictures": None}))
    add_run(second, collection)
    assert not list(collection.glob("other/pictures/*")) and (collection / "other" / "curves.png").is_file()


@pytest.mark.parametrize("outside", ["/etc/passwd", "../secret.png", "pictures/../../secret.png", "linked.png"])
@pytest.mark.parametrize("field", ["pictures", "curves"])
def test_pictures_of_elsewhere_do_not_go(folder, tmp_path, field, outside):
    (folder.parent / "secret.png").write_text("secret")
    (folder / "linked.png").symlink_to(folder.parent / "secret.png")
    Image.new("RGB", (2, 2)).save(folder / "curves.png")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {field: outside}))
    for act in (lambda: exported_files(folder, "user/net"), lambda: add_run(folder, tmp_path / "cards", pictures=True)):
        with pytest.raises(InputError, match=r"leads out of .*: put the file itself there"):
            act()
    assert not list(tmp_path.glob("cards/**/*.png"))


def test_only_pictures_are_shown(folder, tmp_path):
    results = json.loads((folder / "results.json").read_text())
    for name in ("recipe.yaml", "checkpoints/step-001200/student.safetensors"):
        (folder / "results.json").write_text(json.dumps(results | {"pictures": name}))
        with pytest.raises(InputError, match=r"as a picture, which is no \.png"):
            exported_files(folder, "user/net")
    for name in ("no.png", "a\0b.png", "x" * 300 + ".png", "pictures"):
        (folder / "results.json").write_text(json.dumps(results | {"pictures": name}))
        assert not any(path.startswith("pictures") for path in exported_files(folder, "user/net"))


def test_a_picture_that_is_none_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"curves\.png cannot be shown"):
        add_run(folder, tmp_path / "cards", pictures=True)
    assert not read_records(tmp_path / "cards")


@pytest.mark.parametrize("name", ["README.md", "metrics.jsonl", "recipe.yaml", "model.safetensors", "labeled.txt",
                                  "results.json", "theirs.py"])  # fmt: skip
def test_links_to_elsewhere_do_not_go(folder, name):
    (folder.parent / "secret").write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret")
    with pytest.raises(InputError, match=f"{name} leads out of"):
        exported_files(folder, "user/net")


def test_links_within_the_folder_and_to_it_go(folder, tmp_path):
    (folder / "metrics.jsonl").rename(folder / "metrics-1.jsonl")
    (folder / "metrics.jsonl").symlink_to("metrics-1.jsonl")
    (tmp_path / "link").symlink_to(folder)
    assert exported_files(tmp_path / "link", "user/net")["metrics.jsonl"].read_text() == "metrics.jsonl"


def test_nothing_of_elsewhere_goes_with_a_checkpoint(folder):
    (folder.parent / "secret").mkdir()
    (folder.parent / "secret" / "x").write_text("secret")
    checkpoint = folder / "checkpoints" / "step-001200"
    state = {"step": 1200, "evaluation_is_due": False, "recipe": {}, "data": {}, "processes": 1, "scaler": None,
             "best": None, "skipped": [], "seconds": 1.0, "seconds_of": {}}  # fmt: skip
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in checkpoint.iterdir() if path.name != "manifest.json"}  # fmt: skip
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    push = RunPush(folder, "user/net", with_checkpoint=True)
    assert "best/model.safetensors" in push.checkpoint_files()[1]
    (folder / "best" / "x").symlink_to(folder.parent / "secret" / "x")
    with pytest.raises(InputError, match="best/x leads out of"):
        push.checkpoint_files()


@pytest.mark.parametrize("linked", ["run", "records"])
def test_nothing_is_written_through_links(folder, tmp_path, linked):
    collection, elsewhere = tmp_path / "cards", tmp_path / "elsewhere"
    (elsewhere / "run").mkdir(parents=True)
    collection.mkdir()
    (collection / linked).symlink_to(elsewhere)
    (elsewhere / "other.jsonl").write_text(json.dumps({"run": "run"} | RESULTS) + "\n")
    with pytest.raises(InputError, match=r"leads out of .*; remove the link"):
        add_run(folder, collection)
    if linked == "run":
        (collection / "records").mkdir()
        shutil.copy(elsewhere / "other.jsonl", collection / "records")
        with pytest.raises(InputError, match=r"leads out of .*; remove the link"):
            write_collection(collection)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["other.jsonl", "run"]
