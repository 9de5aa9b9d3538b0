"""Who may import whom; see the layout in the README."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "u2pl_hf"
FORBIDDEN = {
    "model": ["u2pl_hf", "accelerate", "datasets"],
    "data": ["u2pl_hf.model", "u2pl_hf.method", "u2pl_hf.training", "u2pl_hf.evaluation", "u2pl_hf.hub", "accelerate",
             "huggingface_hub", "transformers"],
    "method": ["u2pl_hf.model", "u2pl_hf.data", "u2pl_hf.training", "u2pl_hf.evaluation", "u2pl_hf.hub", "accelerate",
               "huggingface_hub", "datasets"],
    "evaluation": ["u2pl_hf.training", "u2pl_hf.hub", "u2pl_hf.method", "accelerate"],
    "hub": ["u2pl_hf.training", "u2pl_hf.method", "u2pl_hf.data", "accelerate"],
    "app": ["u2pl_hf.training", "u2pl_hf.hub", "u2pl_hf.model", "accelerate", "datasets"],
}  # fmt: skip


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


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layers(layer):
    files = list((PACKAGE / layer).glob("**/*.py"))
    assert files
    for file in files:
        for name in imported_modules(file):
            own = layer == "model" and name.startswith("u2pl_hf.model")
            bad = [f for f in FORBIDDEN[layer] if (name == f or name.startswith(f + ".")) and not own]
            assert not bad, f"{file.name} imports {name}"


def test_model_folder_is_copied_to_the_hub_as_it_is():
    """Modelling, configuration and image processor import only each other, and by relative names."""
    names = {f"{part}_u2pl" for part in ("configuration", "backbone", "modeling", "image_processing")}
    for name in names:
        imports = imported_modules(PACKAGE / "model" / f"{name}.py")
        own = [i for i in imports if i.startswith("u2pl_hf")]
        assert set(own) <= {f"u2pl_hf.model.{other}" for other in names}


@pytest.mark.parametrize("start", ["evaluation/inference.py", "hub/push.py", "app/page.py"])
def test_nothing_that_augments_is_loaded_to_predict(start):
    """What a module imports, directly or by others of the package, without albumentations."""
    seen, left = set(), [PACKAGE / start]
    while left:
        path = left.pop()
        seen.add(path)
        names = imported_modules(path)
        assert "albumentations" not in names, path
        modules = [PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("u2pl_hf.")]
        left += [module for module in modules if module.is_file() and module not in seen]
