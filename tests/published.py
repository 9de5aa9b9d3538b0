"""Checkpoints as the published code names and sizes them; see tests/reference/README.md."""

import json
import zlib
from math import sqrt

import torch
from torch import Tensor

from tests.golden import load_golden


def recipe_tensor(seed: str, name: str, shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    n = torch.randn(shape, generator=generator)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return 1 + 0.2 * n.abs()
    if name.endswith("running_mean"):
        return 0.1 * n
    if len(shape) == 4:
        return n * sqrt(2 / (shape[1] * shape[2] * shape[3]))
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.1 * n
    return 0.1 * n


def load_case(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """State dict without prefix, the published network's outputs, and the seed of its input."""
    expected, metadata = load_golden(case)
    shapes, seed = json.loads(metadata["state_dict"]), metadata["seed"]
    return {name: recipe_tensor(seed, name, shape) for name, shape in sorted(shapes.items())}, expected, seed


def narrow_state_dict(seed: str = "narrow", case: str = "model_voc_r50") -> dict[str, Tensor]:
    """The same names with an eighth of the channels."""
    shapes = json.loads(load_golden(case)[1]["state_dict"])
    narrow = {name: [size // 8 if size >= 64 else size for size in shape] for name, shape in shapes.items()}
    return {name: recipe_tensor(seed, name, shape) for name, shape in sorted(narrow.items())}


def assert_outputs(model, expected: dict[str, Tensor], seed: str) -> None:
    """The model gives what the published network gave, relative to the largest magnitude."""
    pixel_values = torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(int(seed) + 7))
    with torch.no_grad():
        output = model.eval()(pixel_values)
    representation = None if output.representation is None else output.representation[:, :8]
    found = {"logits": output.logits, "representation_first8": representation, "aux_logits": output.aux_logits}
    assert expected.keys() == {name for name, tensor in found.items() if tensor is not None}
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name
