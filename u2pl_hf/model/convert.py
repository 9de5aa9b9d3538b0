"""Weights of others in the terms of this model: published U2PL checkpoints, and ResNets of timm or torchvision."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .configuration_u2pl import U2PLConfig
from .modeling_u2pl import U2PLForSemanticSegmentation

# What published names begin with -> what ours do; the rest is equal.
_PREFIXES = {
    "encoder.": "backbone.",
    "decoder.aspp.conv1.": "aspp.image_pooling.",
    **{f"decoder.aspp.conv{i + 2}.": f"aspp.branches.{i}." for i in range(4)},
    "decoder.head.": "aspp.project.",
    "decoder.low_conv.": "low_level.",
    "decoder.classifier.": "classifier.",
    "decoder.representation.": "representation_head.",
    "auxor.aux.": "auxiliary_head.",
}
# (blocks of the third stage, bottleneck?) names the depth.
_BACKBONES = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}


def rename_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a published checkpoint's tensors the names of this model; the prefix `module.` of DDP may be there or not.

    Raises a ValueError naming what is not part of the published network.
    """
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        bare = name.removeprefix("module.")
        ours = next((to + bare.removeprefix(start) for start, to in _PREFIXES.items() if bare.startswith(start)), None)
        if ours in renamed:
            raise ValueError(f"{name} is there with and without the prefix module.")
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    if unknown:
        raise ValueError(f"not parameters of a published U2PL network: {_first(unknown)}")
    return renamed


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def published_config(state_dict: dict[str, Tensor], **fields) -> U2PLConfig:
    """Read the architecture off the tensors' names and sizes.

    Output stride and ASPP dilations leave no trace in the weights: where `fields` does not give them, they keep the
    published values, the defaults.

    Raises:
        ValueError: the tensors are not those of a published network, or a field is out of range.
        TypeError: U2PLConfig has no such field.
    """
    if unknown := [name for name in fields if not hasattr(U2PLConfig(), name)]:
        raise TypeError(f"{', '.join(unknown)}: no field of U2PLConfig")
    weights = rename_published(state_dict)
    ends = {"num_labels": "classifier.8.weight", "head_channels": "aspp.project.0.weight"}
    if missing := [name for name in ends.values() if name not in weights]:
        raise ValueError(f"not a whole published U2PL network: nothing there becomes {', '.join(missing)}")
    if "representation_head.8.weight" in weights:
        ends["representation_channels"] = "representation_head.8.weight"
    if flat := [name for name in ends.values() if weights[name].ndim != 4]:
        raise ValueError(f"what becomes {flat[0]} is no convolution: its shape is {list(weights[flat[0]].shape)}")
    found = {"representation_channels": 0, "auxiliary_head": "auxiliary_head.4.weight" in weights}
    found |= {field: weights[name].shape[0] for field, name in ends.items()}
    backbone = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    return U2PLConfig(**(found | resnet_architecture(backbone) | fields))


def load_published(state_dict: dict[str, Tensor], **fields) -> U2PLForSemanticSegmentation:
    """The model of a published checkpoint's tensors, in float32 and eval mode.

    Args:
        state_dict: one network, with or without the prefix `module.`.
        fields: what the tensors do not tell: output_stride, aspp_dilations, id2label, palette ...

    Raises:
        ValueError: the tensors are not those of one whole published network; names the first of them.
    """
    weights = rename_published(state_dict)
    config = published_config(state_dict, **fields)
    with torch.device("meta"):
        model = U2PLForSemanticSegmentation(config)
    if wrong := mismatch(weights, model.state_dict()):
        raise ValueError(f"not a whole published U2PL network: {wrong}")
    for name, tensor in model.state_dict().items():
        # A counter that nothing reads.
        weights.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
        weights[name] = weights[name].detach().to(tensor.dtype).contiguous()
        if not weights[name].isfinite().all():
            raise ValueError(f"what becomes {name} holds numbers that are not finite")
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def resnet_architecture(weights: Mapping[str, Tensor]) -> dict[str, str | int]:
    """The fields `backbone`, `stem` and `base_width` of a ResNet with names as in timm, torchvision and `U2PLBackbone`.

    Raises:
        ValueError: it is none of the four depths, or no ResNet.
    """
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer3.")})
    bottleneck = "layer1.0.conv3.weight" in weights
    last = weights.get(f"layer1.0.conv{3 if bottleneck else 2}.weight")
    if last is None or last.ndim != 4 or not {"conv1.weight", "conv1.0.weight"} & weights.keys():
        raise ValueError(f"no ResNet in the names of timm and torchvision, but {_first(sorted(weights)) or 'nothing'}")
    if (blocks, bottleneck) not in _BACKBONES:
        known = ", ".join(_BACKBONES.values())
        raise ValueError(f"a backbone with {blocks} blocks in its third stage is none of {known}")
    return {
        "backbone": _BACKBONES[blocks, bottleneck],
        "stem": "deep" if "conv1.0.weight" in weights else "plain",
        # What leaves the stage, as wide and grouped ResNets differ inside.
        "base_width": last.shape[0] // (4 if bottleneck else 1),
    }


def mismatch(weights: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str | None:
    """What keeps tensors from filling a network, by names and shapes; None if they fill it.

    `num_batches_tracked` may be missing: nothing that is used here depends on it.
    """
    if missing := [name for name in needed if name not in weights and not name.endswith(".num_batches_tracked")]:
        return f"there is nothing for {_first(missing)}"
    if unknown := [name for name in weights if name not in needed]:
        return f"there is no place for {_first(unknown)}"
    for name, tensor in weights.items():
        if tensor.shape != needed[name].shape:
            return f"the shape of {name} is {list(tensor.shape)}, not {list(needed[name].shape)}"
    return None
