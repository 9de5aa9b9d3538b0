"""Who may import whom: the table of docs/design.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "u2pl_hf"
# Rooms from the ground up: what each imports of the others, besides the modules of the ground floor.
MAY_IMPORT = {
    "model": set(),
    "system": set(),
    "method": set(),
    "data": set(),
    "evaluation": {"model", "system", "data"},
    "hub": {"method", "measure"},
    "training": {"model", "system", "method", "data", "evaluation", "hub"},
    "measure": {"hub", "training", "evaluation"},
    "app": {"method", "data", "evaluation"},
    "commands": {"model", "system", "method", "data", "evaluation", "hub", "training", "measure", "app"},
}
ROWS = {f"`{room}/`" for room in MAY_IMPORT}
# Libraries that a room does without.
WITHOUT = {
    "model": {"accelerate", "datasets"},
    "method": {"accelerate", "datasets", "huggingface_hub", "transformers"},
    "data": {"accelerate", "huggingface_hub", "transformers"},
    "evaluation": {"accelerate"},
    "hub": {"accelerate"},
    "app": {"accelerate", "datasets"},
}
# The one rule for pixels goes to the Hub with the image processor, and whoever reads files goes by it.
PIXELS = "u2pl_hf.model.image_processing_u2pl"


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(PACKAGE.parent).parts[: -node.level]) if node.level else ""
            names.append(f"{package}.{node.module or ''}".strip("."))
    return names


def test_the_table_says_so():
    """docs/design.md: | `room/` | what it holds | what it imports |."""
    text = (PACKAGE.parent / "docs" / "design.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    rows = [row for row in rows if row[0] in ROWS]
    told = {room.strip("`/"): {name for name in found.split(", ") if name} for room, _, found in rows}
    assert told == MAY_IMPORT


def rooms() -> set[str]:
    return {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def test_every_room_has_its_place():
    assert rooms() == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    files = list((PACKAGE / room).glob("**/*.py"))
    assert files
    for file in files:
        for name in imported_modules(file):
            library, *inside = name.split(".")
            assert library not in WITHOUT.get(room, set()), f"{file.name} imports {name}"
            if library == "u2pl_hf" and name != PIXELS and inside and inside[0] in rooms() - {room}:
                assert inside[0] in MAY_IMPORT[room], f"{file.name} imports {name}"


def test_ground_floor_imports_no_room():
    for file in PACKAGE.glob("*.py"):
        if file.stem in ("__init__", "__main__"):
            continue
        found = {name for name in imported_modules(file) if name.startswith("u2pl_hf.") and name != PIXELS}
        assert not {name.split(".")[1] for name in found} & rooms(), f"{file.name} imports {found}"


def test_no_two_modules_share_a_name():
    """But for a command and what it calls, such as commands/export.py."""
    names = [
        path.stem for path in PACKAGE.glob("**/*.py") if path.parent.name != "commands" and path.stem != "__init__"
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_model_folder_is_copied_to_the_hub_as_it_is():
    """Modelling, configuration and image processor import only each other, and by relative names."""
    names = {f"{part}_u2pl" for part in ("configuration", "backbone", "dpt", "modeling", "image_processing")}
    for name in names:
        imports = imported_modules(PACKAGE / "model" / f"{name}.py")
        own = [i for i in imports if i.startswith("u2pl_hf")]
        assert set(own) <= {f"u2pl_hf.model.{other}" for other in names}
