"""Files that are read back, with fields of other types, cut short, or with other bytes: one line, or they are used."""

import copy
import json
import random
from pathlib import Path

import pytest

from tests.evaluation.test_loading import small_model
from tests.hub.test_model_card import RESULTS
from u2pl_hf.data.prepare.shards import Report
from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.evaluation.curves import save_curves
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.files import read_json
from u2pl_hf.hub.exported import exported_files
from u2pl_hf.hub.results import finished_results
from u2pl_hf.measure.collection import add_run, read_records
from u2pl_hf.measure.tables import Table, TableRow, read_table, render_table
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.run.checkpoint import damage, read_state
from u2pl_hf.training.run.run_folder import RunFolder

RUN = RESULTS | {"hardware": {"name": "X", "processes": 1, "threads": 2}, "pictures": None,
                 "converted_from": {"file": "a", "sha256": "b", "weights": "teacher", "epoch": 1, "best_miou": 0.5,
                                    "class_names_of": None, "output_stride": 8,
                                    "aspp_dilations": [1, 2, 3]}}  # fmt: skip
STATE = {"step": 3, "evaluation_is_due": True, "recipe": {"seed": 1}, "data": {"ids": "x"}, "processes": 1,
         "scaler": None, "best": RUN["best"], "skipped": ["a"], "seconds": 1.0,
         "seconds_of": {"logging": 1.0}}  # fmt: skip
METRICS = [{"step": 1, "loss_total": 0.5, "learning_rate": 0.1}, {"step": 2, "eval_mean_iou": 0.5},
           {"step": 3, "loss_total": 0.25}]  # fmt: skip
TABLE = {"title": "T", "text": "t", "seeds": [1], "options": {"max_steps": 4},
         "rows": [{"id": "a", "name": "A", "recipe": "a.yaml", "options": {"seed": 1}, "seeds": [2]}]}  # fmt: skip
ODD = [None, True, -1, 0, 2**62, 10**400, 1e300, float("nan"), "", "x", "| a `b` <c>\n---\n", [], {}, [[1]],
       {"a": None}, "\ud800", "/etc/passwd", "../x", "a\0b"]  # fmt: skip


def places(value, path=()) -> list[tuple]:
    """The way to each part of a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in parts for place in [(*path, key), *places(part, (*path, key))]]


def harmed(value, rng: random.Random) -> bytes:
    """As JSON: some parts gone or of another type, and then perhaps other bytes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        *way, last = rng.choice(places(value) or [(None,)])
        at = value
        for key in way:
            at = at[key]
        if last is None:
            return json.dumps(rng.choice(ODD)).encode()
        if rng.random() < 0.3:
            del at[last]
        else:
            at[last] = copy.deepcopy(rng.choice(ODD))
    text = bytearray(json.dumps(value).encode())
    how = rng.random()
    if how < 0.1:
        return bytes(text[: rng.randrange(len(text))])
    if how < 0.2:
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    deep = {0.2: b"[" * 3000, 0.22: b'{"a":' * 200 + b"1" + b"}" * 200, 0.24: b"\xef\xbb\xbf" + text, 0.26: b""}
    return next((content for share, content in deep.items() if share <= how < share + 0.02), bytes(text))


def one_line_or_success(act) -> bool:
    try:
        act()
    except (InputError, TrainingError) as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return False
    return True


def table_of(path: Path) -> str:
    return render_table(
        Table("t", "T", "", [TableRow("a", "A", "a.yaml", {}, [0])], False), {"t_a_seed0": finished_results(path)}
    )


def results(folder: Path, content: bytes) -> list:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "results.json").write_bytes(content)
    return [
        lambda: exported_files(folder, "user/net"),
        lambda: table_of(folder),
        lambda: add_run(folder, folder / "cards"),
    ]


def records(folder: Path, content: bytes) -> list:
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / "t.jsonl").write_bytes(
        json.dumps({"run": "t_a_seed0"} | RUN).encode() + b"\n" + content + b"\n"
    )
    rows = [TableRow(name, name, "a.yaml", {}, [0]) for name in "ab"]
    return [lambda: render_table(Table("t", "T", "", rows, False), read_records(folder))]


def metrics(folder: Path, content: bytes) -> list:
    lines = [json.dumps(line).encode() for line in METRICS]
    (folder / "metrics.jsonl").write_bytes(b"\n".join([lines[0], content, lines[2]]) + b"\n")
    return [lambda: save_curves(folder / "metrics.jsonl", folder / "curves.png")]


def recipe(folder: Path, content: bytes) -> list:
    (folder / "recipe.yaml").write_bytes(content)
    return [RunFolder(RunArguments(output_dir=str(folder))).check]


def state(folder: Path, content: bytes) -> list:
    (folder / "state.json").write_bytes(content)
    return [lambda: read_state(folder)]


def manifest(folder: Path, content: bytes) -> list:
    (folder / "manifest.json").write_bytes(content)
    return [lambda: damage(folder)]


def table(folder: Path, content: bytes) -> list:
    (folder / "t.yaml").write_bytes(content)
    return [lambda: render_table(read_table(folder / "t.yaml"), {})]


def work(kind):
    def read(folder: Path, content: bytes) -> list:
        (folder / "x.json").write_bytes(content)
        return [lambda: read_json(folder / "x.json", kind)]

    return read


REPORT = {
    "rows": 1,
    "labelled": 1,
    "size": 9,
    "pixels": [0] * 4,
    "bad": [["a", "why"]],
    "sha256": "x",
    "noted": {"ids": ["b"]},
}


@pytest.mark.parametrize(
    ("read", "content", "number"),
    [(results, RUN, 50), (records, {"run": "t_b_seed0"} | RUN, 50), (metrics, METRICS[1], 20),
     (recipe, RunArguments().recipe(), 60), (state, STATE, 300),
     (manifest, {"a": {"bytes": 1, "sha256": "x"}}, 100), (table, TABLE, 60), (work(Report), REPORT, 100)],
    ids=["results", "records", "metrics", "recipe", "state", "manifest", "table", "report"],
)  # fmt: skip
def test_damaged_files_are_one_line(tmp_path, read, content, number):
    done = [one_line_or_success(act) for seed in range(number)
            for act in read(tmp_path, harmed(content, random.Random(seed)))]  # fmt: skip
    assert any(done) and (not all(done) or read is manifest)


def test_damaged_configurations_are_one_line(tmp_path):
    small_model(tmp_path, palette=[[1, 2, 3]] * 3)
    content = json.loads((tmp_path / "config.json").read_text())
    done = []
    for seed in range(40):
        (tmp_path / "config.json").write_bytes(harmed(content, random.Random(seed)))
        done.append(one_line_or_success(lambda: load_model(str(tmp_path), device="cpu")))
    assert any(done) and not all(done)


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"last": 3}', "last is 3, and must be an object"), ('{"seed": "3"}', "seed is '3', and must be a whole number"),
     ('{"last": {"mean_iou": 1, "per_class_iou": {"a": "x"}}}', "last.per_class_iou.a is 'x', and must be a number"),
     ('{"last": {"step": 1}}', "last.mean_iou is missing"), ('{"seed": 1, "seed": 2}', "'seed' stands there twice"),
     ('{"seconds": NaN}', "NaN is no finite number"), ('{"seconds": 1e999}', "1e999 is no finite number"),
     (f'{{"seed": {"9" * 5000}}}', "is too large a number"), ("[" * 10**5, "is no JSON"),
     ("[]", "must be an object"),
     ('{"a": ' * 60 + "1" + "}" * 60, "50 levels deep"), ('{"class_names": ["\\ud800"]}', "surrogates"),
     ('{"class_names": [1]}', "class_names.0 is 1, and must be text"),
     ('{"dataset_on_hub": 1}', "must be true or false"),
     ('{"num_labelled": true}', "num_labelled is True, and must be a whole number")],
)  # fmt: skip
def test_the_field_is_named(tmp_path, text, told):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError) as caught:
        finished_results(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'results.json'} is no") and told in str(caught.value)
    assert "restore it, or remove it" in str(caught.value) and "\n" not in str(caught.value)


def test_more_fields_and_a_byte_order_mark_pass(tmp_path):
    content = RUN | {"of_a_later_version": {"x": [1]}, "seed": 2**64 - 1}
    (tmp_path / "results.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert finished_results(tmp_path) == content
    (tmp_path / "results.json").write_bytes(json.dumps(content).encode("utf-16"))
    with pytest.raises(InputError, match=r"results\.json cannot be read as text in UTF-8"):
        finished_results(tmp_path)
