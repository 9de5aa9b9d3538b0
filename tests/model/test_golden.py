"""The network against outputs of the published code, for weights and inputs both made by a written recipe."""

import pytest
import torch

from tests.published import assert_outputs, load_case
from u2pl_hf import U2PLForSemanticSegmentation
from u2pl_hf.model.convert import published_config, rename_published

CASES = {
    "model_cityscapes_r101": ("resnet101", 19, 256, True),
    "model_voc_r50": ("resnet50", 21, 256, False),
    "model_voc_suponly_r101": ("resnet101", 21, 0, False),
}


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
    assert_outputs(model, expected, seed)
