"""Every row of docs/fidelity.md names tests that exist; they are what proves the row."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "fidelity.md").read_text().splitlines()
KINDS = r"\| (Eq|Alg|Sec|Defect|AEL|FixMatch|UniMatch|Option)"
ROWS = {line.split("|")[1].strip(): line for line in LINES if re.match(KINDS, line)}


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_equation_and_defect_has_a_row():
    named = " ".join(ROWS)
    assert all(f"Defect {number} " in named for number in range(1, 16))
    assert all(f"Eq. {number} " in named for number in range(1, 9)) and "Eq. 9-11" in named and "Eq. 13-16" in named


@pytest.mark.parametrize("row", ROWS)
def test_row_has_its_tests(row):
    cited = re.findall(r"`([\w/]+\.py)::(\w+)`", ROWS[row])
    assert cited
    for file, name in cited:
        assert name in functions(ROOT / "tests" / file), f"{file}::{name}"


def test_choices_have_their_tests():
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", "\n".join(LINES)):
        assert name in functions(ROOT / "tests" / file), f"{file}::{name}"
