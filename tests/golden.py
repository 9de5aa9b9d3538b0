"""Reference numbers made by the published code; see tests/reference/README.md."""

from pathlib import Path

from safetensors import safe_open

DATA = Path(__file__).parent / "reference"


def load_golden(name: str) -> tuple[dict, dict]:
    """Tensors and metadata of tests/reference/<name>.safetensors."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)
