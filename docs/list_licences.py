"""Write docs/licences.md: what this package needs, in which versions, under which licence, and why.

    python docs/list_licences.py

Names and reasons are those of setup.cfg, versions those of constraints.txt (or the lowest that setup.cfg takes),
licences what the installed packages say of themselves. A package that is not installed keeps the licence that stands in
the file. The last line of stdout is one JSON object.
"""

import argparse
import configparser
import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from u2pl_hf.errors import InputError, exits_on_input_error

ROOT = Path(__file__).resolve().parents[1]
# The same licence by other names, as packages write it.
SPDX = {
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "FreeBSD": "BSD-2-Clause",
}
HEAD = """# Licences of dependencies

Direct dependencies, as `python docs/list_licences.py` finds them. All may be used by a work under Apache-2.0, this
project's own licence; none is copied into it or changed. What they need in turn is not listed. The wheels of
opencv-python-headless carry FFmpeg under LGPL-2.1 beside OpenCV; reading and writing images does not use it.

| package | version | licence | for | why |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Dependency:
    """One direct dependency: its name, lowest version, the extras that ask for it (none: always), and the reason."""

    name: str
    lowest: str
    extras: tuple[str, ...]
    why: str


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_file", type=Path, default=ROOT / "docs" / "licences.md", help="default: %(default)s")
    return parser.parse_args()


def dependencies() -> list[Dependency]:
    """The direct dependencies of setup.cfg, in its order; a package of several extras once."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    core = config["options"]["install_requires"].split()
    asked: dict[str, list[str]] = {requirement: [] for requirement in core}
    for extra, requirements in config["options.extras_require"].items():
        for requirement in requirements.split():
            asked.setdefault(requirement, []).append(extra)
    reasons = reasons_of((ROOT / "setup.cfg").read_text())
    found = []
    for requirement, extras in asked.items():
        name, lowest = requirement.split(">=")
        if name not in reasons:
            raise InputError(f"setup.cfg gives no reason for {name}: add a line '#   {name}  what for' above the list")
        found.append(Dependency(name, lowest, () if requirement in core else tuple(extras), reasons[name]))
    return found


def reasons_of(text: str) -> dict[str, str]:
    """The lines '#   name, name  reason' of setup.cfg."""
    lines = re.findall(r"^#   ([\w, -]+?) {2,}(\S.*)$", text, re.MULTILINE)
    return {name: reason for names, reason in lines for name in names.split(", ")}


def licence_of(name: str) -> str | None:
    """What an installed package says of its licence, by the names of SPDX; None where it is not installed."""
    try:
        facts = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [c.split(" :: ")[-1] for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
    # The oldest field may hold the whole text.
    said = facts["License-Expression"] or next(iter(classifiers), None) or (facts["License"] or "").split("\n")[0]
    return SPDX.get(said, said)


def pinned() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def read_table(path: Path) -> dict[str, list[str]]:
    """Package -> its cells, of a file that was written before."""
    rows = re.findall(r"^\| ([\w-]+) \| (.*) \|$", path.read_text(), re.MULTILINE) if path.is_file() else []
    return {name: [name, *cells.split(" | ")] for name, cells in rows if name not in ("package", "---")}


@exits_on_input_error
def main() -> None:
    """Collect and write."""
    path = parse_arguments().output_file
    versions, before, rows = pinned(), read_table(path), []
    for one in dependencies():
        licence = licence_of(one.name) or (before[one.name][2] if one.name in before else None)
        if licence is None:
            raise InputError(f"{one.name} is not installed, so its licence is not known: install it and run this again")
        version = versions.get(one.name, f"{one.lowest} or newer")
        rows.append(f"| {one.name} | {version} | {licence} | {', '.join(one.extras) or 'always'} | {one.why} |")
    path.write_text(HEAD + "\n".join(rows) + "\n")
    print(json.dumps({"file": str(path), "packages": len(rows)}))


if __name__ == "__main__":
    main()
