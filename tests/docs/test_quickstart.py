"""The notebook, cell by cell in an empty folder."""

import ast
import json
from pathlib import Path

from accelerate.state import AcceleratorState
from PIL import Image

from tests.docs.commands import ROOT
from u2pl_hf.commands import COMMANDS

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict):
    """What a notebook shows of a cell: the value of its last line."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None


def test_cells_run_and_show_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    names: dict = {}
    shown = [run_cell(source, names) for source in CELLS]
    scores = next(value for value in shown if isinstance(value, dict))
    assert scores.keys() == {"suponly", "u2pl"} and all(0 < score < 100 for score in scores.values())
    assert sum(isinstance(value, Image.Image) for value in shown) == 3
    assert "mean confidence 0." in capsys.readouterr().out
    assert names["run"].folder == Path("runs/u2pl") and names["run"].results["num_unlabelled"] == 24
    # Run again, nothing is done twice.
    assert run_cell(CELLS[2], names) == scores


def test_nothing_is_kept_of_a_session_and_commands_exist():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])
    text = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"])
    assert {word.split()[0] for word in text.split("`u2pl ")[1:]} <= set(COMMANDS)
