"""docs/licences.md lists what setup.cfg asks for, in the versions of constraints.txt, under licences that fit."""

import configparser
import importlib.util
import json
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "licences.md"
# Of SPDX; what a work under Apache-2.0 may depend on. MPL-2.0 holds for its own files only.
COMPATIBLE = {
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD",
    "BSL-1.0", "Zlib", "CC0-1.0", "MPL-2.0", "PSF-2.0", "ISC", "Python Software Foundation License",
}  # fmt: skip


def rows() -> dict[str, list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and " --- " not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: row for row in cells}


def asked_for() -> dict[str, set[str]]:
    """Package -> what asks for it: extras, or `always`."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    places = {"always": config["options"]["install_requires"], **config["options.extras_require"]}
    found: dict[str, set[str]] = {}
    for place, requirements in places.items():
        for requirement in requirements.split():
            found.setdefault(re.match(r"[\w-]+", requirement)[0], set()).add(place)
    return found


def load_script():
    spec = importlib.util.spec_from_file_location("list_licences", ROOT / "docs" / "list_licences.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_direct_dependency_is_listed_with_what_asks_for_it():
    asked = {name: {"always"} if "always" in places else places for name, places in asked_for().items()}
    assert {name: set(row[3].split(", ")) for name, row in rows().items()} == asked
    assert all(row[4] for row in rows().values())


def test_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    for name, row in rows().items():
        assert row[1] == versions[name] if name in versions else row[1].endswith(" or newer"), name


def test_licences_are_compatible():
    for name, row in rows().items():
        assert row[2] and set(row[2].split(" AND ")) <= COMPATIBLE, name


@pytest.mark.parametrize("name", rows())
def test_the_package_says_so_itself(name):
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    said = " ".join([facts["License-Expression"] or "", facts["License"] or "", *(facts.get_all("Classifier") or [])])
    word = rows()[name][2].split("-")[0].split(" ")[0]
    assert word in said


def test_the_script_writes_what_is_there(tmp_path, monkeypatch, capsys):
    written = tmp_path / "licences.md"
    written.write_text(TABLE.read_text())
    monkeypatch.setattr(sys, "argv", ["list_licences.py", "--output_file", str(written)])
    load_script().main()
    assert json.loads(capsys.readouterr().out)["packages"] == len(rows())
    assert written.read_text() == TABLE.read_text()
    # Without a row to keep, a package that is not installed cannot be listed.
    monkeypatch.setattr("importlib.metadata.metadata", absent)
    written.unlink()
    with pytest.raises(SystemExit) as end:
        load_script().main()
    assert end.value.code == 2 and "install it" in capsys.readouterr().err and not written.exists()


def absent(name: str):
    raise PackageNotFoundError(name)
