"""The network against outputs of the published code, for weights and inputs both made by a written recipe."""

import json
import zlib
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from u2pl_hf import U2PLForSemanticSegmentation
from u2pl_hf.model.convert import published_config, rename_published

DATA = Path(__file__).parents[1] / "reference"
CASES = {
    "model_cityscapes_r101": ("resnet101", 19, 256, True),
    "model_voc_r50": ("resnet50", 21, 256, False),
    "model_voc_suponly_r101": ("resnet101", 21, 0, False),
}


def recipe_tensor(seed: str, name: str, shape: list[int]) -> torch.Tensor:
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


def load_case(case: str) -> tuple[dict, dict, str]:
    with safe_open(DATA / f"{case}.safetensors", "pt") as file:
        metadata = file.metadata()
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
    shapes = json.loads(metadata["state_dict"])
    seed = metadata["seed"]
    return {name: recipe_tensor(seed, name, shape) for name, shape in sorted(shapes.items())}, expected, seed


def assert_relatively_close(actual: torch.Tensor, expected: torch.Tensor):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_published_code(case):
    state_dict, expected, seed = load_case(case)
    config = published_config(state_dict)
    found = (config.backbone, config.num_labels, config.representation_channels, config.auxiliary_head)
    assert found == CASES[case]
    assert (config.base_width, config.head_channels, config.stem) == (64, 256, "deep")

    with torch.device("meta"):
        model = U2PLForSemanticSegmentation(config)
    model.load_state_dict(rename_published(state_dict), strict=True, assign=True)
    model.eval()
    pixel_values = torch.randn(1, 3, 97, 129, generator=torch.Generator().manual_seed(int(seed) + 7))
    with torch.no_grad():
        output = model(pixel_values)

    assert_relatively_close(output.logits, expected["logits"])
    if "representation_first8" in expected:
        assert_relatively_close(output.representation[:, :8], expected["representation_first8"])
    else:
        assert output.representation is None
    if "aux_logits" in expected:
        assert_relatively_close(output.aux_logits, expected["aux_logits"])
    else:
        assert output.aux_logits is None
