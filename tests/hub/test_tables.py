"""Tables of measured runs: files, runs, text, and the committed ones."""

import itertools
import json
import re
from pathlib import Path

import pytest

from u2pl_hf.errors import InputError
from u2pl_hf.measure.collection import add_run, read_records, render_collection, write_collection
from u2pl_hf.measure.queue import option_words
from u2pl_hf.measure.tables import project_tables, read_table, render_table
from u2pl_hf.training.recipe.command import parse_arguments

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "training_scripts" / "tables").glob("*.yaml"))
FILE = """
title: Two ways
text: A sentence.
options: {max_steps: 4, split: "{dataset}/list.txt"}
seeds: [3, 4]
rows:
  - {id: one, name: First way, recipe: a.yaml}
  - {id: two, name: Second way, recipe: b.yaml, options: {max_steps: 5}, seeds: [4]}
"""


def facts(seed: int, last: float, best: float, sky: float | None) -> dict:
    scores = {"mean_iou": last, "per_class_iou": {"sky": sky, "road": 0.5}}
    return {"seed": seed, "num_labelled": 7, "max_steps": 4, "seconds": 90.0, "last": scores,
            "best": {"mean_iou": best}, "class_names": ["sky", "road"], "date": f"2026-01-0{seed}",
            "hardware": {"name": "X", "threads": 1, "processes": 1}, "versions": {"torch": "9"}}  # fmt: skip


@pytest.fixture
def table(tmp_path):
    (tmp_path / "ways.yaml").write_text(FILE)
    return read_table(tmp_path / "ways.yaml")


def test_runs_take_the_first_seed_of_all_rows_first(table):
    runs = table.runs()
    assert list(runs) == ["ways_one_seed3", "ways_one_seed4", "ways_two_seed4"]
    assert runs["ways_two_seed4"][0].options == {"max_steps": 5, "split": "{dataset}/list.txt"}


def test_the_text_has_means_and_deviations_over_seeds(table):
    found = {"ways_one_seed3": facts(3, 0.5, 0.6, 0.25), "ways_one_seed4": facts(4, 0.52, 0.62, 0.75)}
    text = render_table(table, found)
    assert text.startswith("# Two ways\n\nA sentence.\n")
    assert "| First way | 7 | 4 | 3 4 | 51.00 | 1.41 | 61.00 | 50.00 52.00 | 2 |" in text
    assert "| sky | 50.0 |" in text and "| road | 50.0 |" in text
    assert "Measured on X, processes 1, threads 1; torch 9; 2026-01-03 to 2026-01-04." in text
    assert "Not run: ways_two_seed4." in text and "Second way" not in text
    one = render_table(table, {"ways_two_seed4": facts(4, 0.52, 0.62, None)})
    assert "| Second way | 7 | 4 | 4 | 52.00 |  | 62.00 | 52.00 | 2 |" in one and "| sky | - |" in one


def test_of_several_machines_a_table_says_which_rows_are_of_which(table):
    found = {"ways_one_seed3": facts(3, 0.5, 0.6, 0.25), "ways_one_seed4": facts(4, 0.52, 0.62, 0.75),
             "ways_two_seed4": facts(4, 0.52, 0.62, None)}  # fmt: skip
    other = {"hardware": {"name": "Y", "threads": 2, "processes": 1}}
    text = render_table(table, {name: run | (other if name == "ways_one_seed4" else {}) for name, run in found.items()})
    assert (
        "Measured on X, processes 1, threads 1; on Y, processes 1, threads 2: First way (seeds 4); torch 9; 2026"
        in text
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: []", "title"),
        ("title: x\nrows: []", "ids must be different"),
        ("title: x\nrows: [{id: a, name: b}]", "recipe"),
        ("title: x\nrows: [{id: A b, name: b, recipe: c}]", "ids must be different"),
        ("title: x\nrows: [{id: a, name: b, recipe: c}, {id: a, name: b, recipe: c}]", "ids must be different"),
        ("[1", "title and rows"),
        ("- 1", "title and rows"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, content, message):
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(InputError) as error:
        read_table(tmp_path / "t.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_rows_of_the_projects_tables_are_runs_that_differ(path):
    table = read_table(path)
    recipes = []
    for row, seed in table.runs().values():
        words = [str(ROOT / "training_scripts" / "recipes" / row.recipe), *option_words(row.options | {"seed": seed})]
        recipes.append(json.dumps(parse_arguments(words, "").recipe(), sort_keys=True))
    assert len(set(recipes)) == len(recipes) > 1


def test_committed_cards_and_tables_are_those_of_their_records():
    collection = ROOT / "model_cards"
    texts = render_collection(collection, project_tables())
    assert {path.name for path in texts} == {"README.md", *(f"{path.stem}.md" for path in TABLES)}
    for path, text in texts.items():
        assert path.read_text() == text, f"{path}: run training_scripts/render_cards.py"
        for picture in re.findall(r"!\[.*\]\((.+)\)", text):
            assert (path.parent / picture).is_file()
    for path in (collection / "records").iterdir():
        # Each run stands in its table's file once, and tells nothing of the machine it ran on.
        lines = path.read_text().splitlines()
        assert list(read_records(collection, path.stem)) == [json.loads(line)["run"] for line in lines]
        assert (
            read_table(ROOT / "training_scripts" / "tables" / f"{path.stem}.yaml").runs().keys()
            >= read_records(collection, path.stem).keys()
        )
        assert not re.search(r"(?<![\w:/])/(home|root|tmp|Users)/", path.read_text())


def test_the_numbers_in_the_readme_are_those_of_the_tables():
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| data, labelled images |"))
    header = [cell.strip() for cell in lines[start].split("|")[2:-1]]
    compared = 0
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        place, labelled = re.match(r"\| \[.*\]\((.*)\), (\d+) \|", line).groups()
        rows = [
            [c.strip() for c in row.split("|")[1:-1]] for row in (ROOT / place).read_text().splitlines() if "|" in row
        ]
        base = next(row for row in rows if len(row) == 9 and row[:2] == ["SupOnly", labelled])
        gains = {
            row[0]: f"{row[2]} ({row[3].replace('+', '')})" for row in rows if len(row) == 6 and row[1] == labelled
        }
        for name, cell in zip(header, line.split("|")[2:-1], strict=True):
            told = f"{base[4]} ± {base[5]}" if name == "SupOnly" else gains.get(name, "not run")
            assert cell.strip().replace("\N{MINUS SIGN}", "-") == told, (line, name)
            compared += 1
    assert compared > 10


def test_gains_in_the_results_are_those_of_the_tables():
    lines = (ROOT / "docs" / "results.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|  | [demo]"))
    places = re.findall(r"\(\.\./(model_cards/.*?\.md)\)", lines[start])
    cards = [(ROOT / place).read_text().splitlines() for place in places]
    shown = [{tuple(cell.strip() for cell in row.split("|")[3:6]) for row in card} for card in cards]
    compared = 0
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 3 :]):
        for cell, card in zip(line.split("|")[2:-1], shown, strict=True):
            parts = re.fullmatch(r" (\S+) \((.*)\), (.*) ", cell.replace("\N{MINUS SIGN}", "-"))
            if parts:
                mean, each, share = parts.groups()
                each = " ".join(part if part[0] == "-" else f"+{part}" for part in each.split())
                assert (mean, each, share) in card, (line, cell)
                compared += 1
            else:
                assert not cell.strip(), (line, cell)
    assert compared > 30


def test_photographs_of_others_are_not_in_the_collection():
    """Only the rendered demo's images may be passed on."""
    shown = {path.parent.parent.name for path in (ROOT / "model_cards").glob("*/pictures/*")}
    assert shown and all(name.startswith("demo_") for name in shown)
    assert [path.stem for path in TABLES if read_table(path).pictures] == ["demo"]


def test_a_new_run_touches_its_line_and_its_table(tmp_path, table):
    collection = tmp_path / "cards"

    def measure(seed: int, last: float) -> None:
        run = tmp_path / f"ways_one_seed{seed}"
        run.mkdir(exist_ok=True)
        (run / "results.json").write_text(json.dumps(facts(seed, last, 0.6, 0.25) | {"output_dir": str(run)}))
        add_run(run, collection, [table])

    measure(4, 0.5)
    assert write_collection(collection, [table]) == [collection / "ways.md"]
    before = (collection / "records" / "ways.jsonl").read_text()
    measure(3, 0.7)
    lines = (collection / "records" / "ways.jsonl").read_text().splitlines()
    # In the table's order, whichever came first.
    assert json.loads(lines[0])["run"] == "ways_one_seed3" and f"{lines[1]}\n" == before
    assert "| First way | 7 | 4 | 3 4 | 60.00 |" in render_collection(collection, [table])[collection / "ways.md"]
    write_collection(collection, [table])
    measure(3, 0.7)
    assert write_collection(collection, [table]) == []
    assert sorted(path.name for path in collection.rglob("*")) == ["records", "ways.jsonl", "ways.md"]


def test_curves_that_are_gone_are_drawn_again(tmp_path, table):
    collection = tmp_path / "cards"
    for name, method in (("ways_one_seed4", "suponly"), ("ways_two_seed4", "fixmatch")):
        run = tmp_path / name
        run.mkdir()
        (run / "results.json").write_text(json.dumps(facts(4, 0.5, 0.6, 0.25) | {"method": method, "max_steps": 4}))
        lines = [json.dumps({"step": step, "eval_mean_iou": 0.1 * step}) for step in (2, 4)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        add_run(run, collection, [table])
    write_collection(collection, [table])
    drawn = (collection / "ways.png").read_bytes()
    (collection / "ways.png").unlink()
    assert write_collection(collection, [table]) == [collection / "ways.md"]
    assert (collection / "ways.png").read_bytes() == drawn and write_collection(collection, [table]) == []
