"""Weights of others in the terms of this model: published checkpoints of U2PL and UniMatch V2, DINOv2, ResNets."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoBackbone, Dinov2Config

from u2pl_hf.errors import few

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
# UniMatch V2's heads.
_DPT_PREFIXES = {
    "head.projects.": "dpt.projects.",
    "head.resize_layers.": "dpt.resizes.",
    **{f"head.scratch.layer{i + 1}_rn.": f"dpt.inputs.{i}." for i in range(4)},
    **{f"head.scratch.refinenet{i + 1}.out_conv.": f"dpt.fusions.{i}.project." for i in range(4)},
    **{f"head.scratch.refinenet{i + 1}.resConfUnit1.": f"dpt.fusions.{i}.skip." for i in range(4)},
    **{f"head.scratch.refinenet{i + 1}.resConfUnit2.": f"dpt.fusions.{i}.unit." for i in range(4)},
    "head.scratch.output_conv.": "classifier.",
}
# DINOv2's names, and what transformers says.
_DINOV2 = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("blocks.", "encoder.layer."),
    (".gamma", ".lambda1"),
    (".ls", ".layer_scale"),
)
# What stands for one tensor there, by version.
_DINOV2_PARTS = {
    "attn.qkv": (
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    ),
    "attn.proj": (("attention.o_proj",), ("attention.output.dense",)),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"), ("mlp.weights_in",)),
    "mlp.w3": (("mlp.down_proj",), ("mlp.weights_out",)),
}
# (blocks of the third stage, bottleneck?) names the depth.
_BACKBONES = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}


def rename_published(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a published checkpoint's tensors the names of this model; the prefix `module.` of DDP may be there or not.

    Raises a ValueError naming what is not part of the published network.
    """
    bare = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if len(bare) < len(state_dict):
        twice = next(name for name in state_dict if f"module.{name}" in state_dict)
        raise ValueError(f"{twice} is there with and without the prefix module.")
    is_dpt = any(name.startswith("head.scratch.") for name in bare)
    renamed, unknown = {}, []
    for said in state_dict:
        name = said.removeprefix("module.")
        tensor = bare[name]
        prefixes = _DPT_PREFIXES if is_dpt else _PREFIXES
        ours = next((to + name.removeprefix(start) for start, to in prefixes.items() if name.startswith(start)), None)
        if ours is not None:
            renamed[ours] = tensor
        elif not (is_dpt and name.startswith("backbone.")):
            unknown.append(said)
    if unknown:
        network = "UniMatch V2" if is_dpt else "U2PL"
        raise ValueError(f"not parameters of a published {network} network: {few(unknown, 5)}")
    if not is_dpt:
        return renamed
    backbone = {name.removeprefix("backbone."): t for name, t in bare.items() if name.startswith("backbone.")}
    features = {f"backbone.features.{name}": tensor for name, tensor in rename_dinov2(backbone).items()}
    return features | renamed


def rename_dinov2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's tensors (facebook's code) by the names of the installed transformers' Dinov2Backbone.

    Raises a ValueError naming what is not there, or not part of it.
    """
    config = dinov2_architecture(weights)
    with torch.device("meta"):
        needed = AutoBackbone.from_config(config).state_dict()
    renamed = {}
    for name, tensor in weights.items():
        for theirs, ours in _DINOV2:
            name = name.replace(theirs, ours)
        name = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        kind = next((kind for kind in _DINOV2_PARTS if f".{kind}." in name), None)
        if kind is None or not tensor.ndim:
            renamed[name] = tensor
            continue
        # Versions of transformers differ in these names, and in whether projections are one tensor.
        layer, _, rest = name.partition(f".{kind}.")
        parts = next((own for own in _DINOV2_PARTS[kind] if f"{layer}.{own[0]}.{rest}" in needed), (kind,))
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=False):
            renamed[f"{layer}.{part}.{rest}"] = piece
    if wrong := mismatch(renamed, needed):
        raise ValueError(f"not a whole DINOv2 network: {wrong}")
    return renamed


def dinov2_architecture(weights: Mapping[str, Tensor]) -> Dinov2Config:
    """The configuration of a DINOv2 with the names of facebook's code, without registers.

    Raises a ValueError where sizes say that it is none.
    """
    patches, positions = weights.get("patch_embed.proj.weight"), weights.get("pos_embed")
    if patches is None or patches.ndim != 4 or positions is None or positions.ndim != 3:
        raise ValueError(f"no DINOv2 in the names of its authors, but {few(sorted(weights), 5) or 'nothing'}")
    if "register_tokens" in weights:
        raise ValueError("a DINOv2 with registers: name its folder or Hub id in transformers' form instead")
    width, patch = patches.shape[0], patches.shape[-1]
    if not width or width % 64 or not patch or positions.shape[1] < 5:
        sizes = f"{list(patches.shape)} and {list(positions.shape)}"
        raise ValueError(f"no DINOv2: patch_embed.proj.weight and pos_embed have the shapes {sizes}")
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        # Heads leave no trace in the weights; all four published sizes have 64 channels in each.
        num_attention_heads=max(1, width // 64),
        use_swiglu_ffn=any(".mlp.w12." in name for name in weights),
        patch_size=patch,
        image_size=patch * round((positions.shape[1] - 1) ** 0.5),
        # As transformers has them on the Hub.
        layerscale_value=1.0,
        reshape_hidden_states=True,
    )


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
    if "dpt.inputs.0.weight" in weights:
        return _unimatch_config(state_dict, weights, fields)
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


def _unimatch_config(state_dict: dict[str, Tensor], weights: dict[str, Tensor], fields: dict) -> U2PLConfig:
    last = weights.get("classifier.2.weight")
    if last is None or last.ndim != 4:
        raise ValueError("not a whole published UniMatch V2 network: nothing there becomes classifier.2.weight")
    bare = {name.removeprefix("module.").removeprefix("backbone."): t for name, t in state_dict.items()}
    backbone = dinov2_architecture({name: t for name, t in bare.items() if not name.startswith("head.")})
    found = {"head": "dpt", "num_labels": last.shape[0], "head_channels": last.shape[1], "representation_channels": 0}
    # A DeepLabv3+ has these.
    fields = {name: value for name, value in fields.items() if name not in ("output_stride", "aspp_dilations")}
    return U2PLConfig(backbone=backbone, **(found | fields))


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
        raise ValueError(f"not a whole published network: {wrong}")
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
        raise ValueError(f"no ResNet in the names of timm and torchvision, but {few(sorted(weights), 5) or 'nothing'}")
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
        return f"there is nothing for {few(missing, 5)}"
    if unknown := [name for name in weights if name not in needed]:
        return f"there is no place for {few(unknown, 5)}"
    for name, tensor in weights.items():
        if tensor.shape != needed[name].shape:
            return f"the shape of {name} is {list(tensor.shape)}, not {list(needed[name].shape)}"
    return None
