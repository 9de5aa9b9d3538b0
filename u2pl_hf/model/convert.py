"""Published U2PL checkpoints: their parameter names and sizes in the terms of this model."""

import re

from torch import Tensor

from .configuration_u2pl import U2PLConfig

_LEAF = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
_BACKBONE = r"(conv1(?:\.\d)?|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))"
# A published name is matched as a whole; what stands in the groups is kept.
_RENAMES = [
    (re.compile(pattern + _LEAF), replacement)
    for pattern, replacement in (
        (rf"encoder\.{_BACKBONE}", r"backbone.\1.\2"),
        (r"decoder\.aspp\.conv1\.(\d)", r"aspp.image_pooling.\1.\2"),
        (r"decoder\.aspp\.conv2\.(\d)", r"aspp.branches.0.\1.\2"),
        (r"decoder\.aspp\.conv3\.(\d)", r"aspp.branches.1.\1.\2"),
        (r"decoder\.aspp\.conv4\.(\d)", r"aspp.branches.2.\1.\2"),
        (r"decoder\.aspp\.conv5\.(\d)", r"aspp.branches.3.\1.\2"),
        (r"decoder\.head\.(\d)", r"aspp.project.\1.\2"),
        (r"decoder\.low_conv\.(\d)", r"low_level.\1.\2"),
        (r"decoder\.classifier\.(\d)", r"classifier.\1.\2"),
        (r"decoder\.representation\.(\d)", r"representation_head.\1.\2"),
        (r"auxor\.aux\.(\d)", r"auxiliary_head.\1.\2"),
    )
]
# (blocks of the third stage, bottleneck?) names the depth.
_BACKBONES = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}


def rename_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a published checkpoint's tensors the names of this model; the prefix `module.` of DDP may be there or not.

    Raises a ValueError naming what is not part of the published network.
    """
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        new_name = _rename(name.removeprefix("module."))
        if new_name is None:
            unknown.append(name)
        else:
            renamed[new_name] = tensor
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"not parameters of a published U2PL network: {', '.join(unknown[:5])}{more}")
    return renamed


def _rename(name: str) -> str | None:
    for pattern, replacement in _RENAMES:
        if match := pattern.fullmatch(name):
            return match.expand(replacement)
    return None


def published_config(state_dict: dict[str, Tensor]) -> U2PLConfig:
    """Read the architecture off the tensors' names and sizes.

    Output stride and ASPP dilations leave no trace in the weights: they keep the published values, the defaults.
    """
    weights = rename_published(state_dict)
    needed = ("classifier.8.weight", "backbone.layer1.0.conv1.weight", "aspp.project.0.weight")
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"not a whole published U2PL network: nothing there becomes {', '.join(missing)}")
    blocks = len({name.split(".")[2] for name in weights if name.startswith("backbone.layer3.")})
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    if (blocks, bottleneck) not in _BACKBONES:
        known = ", ".join(_BACKBONES.values())
        raise ValueError(f"a backbone with {blocks} blocks in its third stage is none of {known}")
    representation = weights.get("representation_head.8.weight")
    return U2PLConfig(
        num_labels=weights["classifier.8.weight"].shape[0],
        backbone=_BACKBONES[blocks, bottleneck],
        stem="deep" if "backbone.conv1.0.weight" in weights else "plain",
        base_width=weights["backbone.layer1.0.conv1.weight"].shape[0],
        head_channels=weights["aspp.project.0.weight"].shape[0],
        representation_channels=0 if representation is None else representation.shape[0],
        auxiliary_head="auxiliary_head.4.weight" in weights,
    )
