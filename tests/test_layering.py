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
    "measure": ["u2pl_hf.model", "u2pl_hf.method", "u2pl_hf.data", "u2pl_hf.app", "u2pl_hf.commands"],
    "app": ["u2pl_hf.training", "u2pl_hf.hub", "u2pl_hf.model", "accelerate", "datasets"],
}  # fmt: skip
# The one rule for pixels goes to the Hub with the image processor, and training has to read files by it.
ALLOWED = {("decode.py", "u2pl_hf.model.image_processing_u2pl")}


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
            bad = [] if (file.name, name) in ALLOWED else bad
            assert not bad, f"{file.name} imports {name}"


def test_model_folder_is_copied_to_the_hub_as_it_is():
    """Modelling, configuration and image processor import only each other, and by relative names."""
    names = {f"{part}_u2pl" for part in ("configuration", "backbone", "modeling", "image_processing")}
    for name in names:
        imports = imported_modules(PACKAGE / "model" / f"{name}.py")
        own = [i for i in imports if i.startswith("u2pl_hf")]
        assert set(own) <= {f"u2pl_hf.model.{other}" for other in names}
