"""Backbones of transformers, and of timm by way of transformers: configuration and trained weights."""

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, Dinov2Config, PreTrainedConfig, TimmBackboneConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from u2pl_hf.errors import InputError, refuse, refusing
from u2pl_hf.evaluation.loading import check_downloads, first_not_finite
from u2pl_hf.hub_cache import is_reachable
from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.convert import mismatch, rename_dinov2
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.training.recipe.arguments import BACKBONES, FRESH, TIMM, RunArguments
from u2pl_hf.training.weights.weights_file import is_state_dict, read_weights_file

logger = logging.getLogger(__name__)

# Hidden size and layers of what DINOv2's authors published, so that a plan
# without data, or weights from a file, need no Hub.
DINOV2 = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "giant": (1536, 40)}


def backbone_config(args: RunArguments) -> PreTrainedConfig | None:
    """Configuration of the backbone that --backbone names; None for a ResNet of this package.

    Raises:
        InputError: no such folder or model on the Hub, not a backbone, or no such stage.
    """
    option, is_timm = f"--backbone {args.backbone}", args.backbone.startswith(TIMM)
    known = f"pass {', '.join(BACKBONES)}, or folder or Hub id of a backbone of transformers"
    is_own, is_named = args.backbone in BACKBONES, "/" in args.backbone or Path(args.backbone).is_dir()
    stages = f"--backbone_stages goes with backbones of transformers, not with {option}"
    refuse([
        (args.backbone_stages and (is_own or is_timm), stages),
        (not is_own and not is_named, f"{option}: no such backbone; {known}"),
    ])  # fmt: skip
    if is_own:
        return None
    if is_timm:
        return _timm_config(args)
    # transformers and huggingface_hub raise their own types for wrong fields.
    with refusing(Exception, option, f"; {known}"):
        config = _published_dinov2(args.backbone) or AutoConfig.from_pretrained(
            args.backbone, revision=args.backbone_revision, trust_remote_code=False, **_where(args.backbone)
        )
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise InputError(f"{option}: models of type {config.model_type} are no backbones; {known}")
    if args.backbone_stages:
        with refusing(ValueError, f"--backbone_stages: pass some of {' '.join(config.stage_names)}, in this order"):
            config.out_features = args.backbone_stages
    # The checkpoint's own classes mean nothing here, and may be thousands.
    config.num_labels = 2
    return config


def _published_dinov2(name: str) -> Dinov2Config | None:
    owner, _, size = name.partition("/dinov2-")
    if owner != "facebook" or size not in DINOV2 or Path(name).exists():
        return None
    width, layers = DINOV2[size]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=size == "giant",
    )


def check_crop(args: RunArguments, config: U2PLConfig) -> None:
    """Refuse crops that DPT would resize to whole patches.

    Raises:
        InputError: names the nearest sizes.
    """
    if args.head == "dpt" and config.patch and args.crop_size % config.patch:
        below = args.crop_size // config.patch * config.patch
        raise InputError(
            f"--crop_size {args.crop_size} is no multiple of {config.patch}, the patches of {args.backbone}: "
            f"pass {below} or {below + config.patch}"
        )


def _timm_config(args: RunArguments) -> TimmBackboneConfig:
    option, name = f"--backbone {args.backbone}", args.backbone.removeprefix(TIMM)
    if not _timm(args).is_model(name.partition(".")[0]):
        raise InputError(f"{option}: timm has no {name}; timm.list_models() has all names")
    # 32 is what nearly all have, and not all take it as an option.
    stride = None if args.output_stride == 32 else args.output_stride
    config = TimmBackboneConfig(backbone=name, output_stride=stride)
    # Some have no such stride, some no maps with channels first, some take images of one size only.
    what = f"{option} cannot be used{f' with --output_stride {stride}' if stride else ''}"
    hint = f": pass {'--output_stride 32, or ' if stride else ''}another network, such as timm/mobilenetv2_100"
    with refusing(Exception, what, hint), torch.device("meta"):
        fields = {"head": args.head, "representation_channels": 0}
        network = U2PLForSemanticSegmentation(U2PLConfig(backbone=config, **fields)).eval()
        network(torch.empty(1, 3, args.crop_size, args.crop_size))
    return config


def _timm(args: RunArguments):
    """The library, which is not among the requirements: it needs torchvision."""
    what = f"--backbone {args.backbone} needs timm and a torchvision that fits torch"
    # RuntimeError: a torchvision that does not fit torch.
    with refusing((ImportError, RuntimeError), what, ": pip install 'u2pl_hf[timm]'"):
        return importlib.import_module("timm")


def weights_of_backbone(args: RunArguments) -> tuple[str | None, str | None]:
    """What the backbone starts from, and its revision: --backbone_weights, or for backbones of others --backbone."""
    if args.backbone_weights is None and args.backbone not in BACKBONES:
        return args.backbone, args.backbone_revision
    return args.backbone_weights, args.backbone_weights_revision


def backbone_normalisation(args: RunArguments) -> dict[str, list[float]]:
    """Mean and deviation of the images that the backbone's weights learned from, as U2PLConfig's fields, if known."""
    name, revision = weights_of_backbone(args)
    if name == FRESH:
        return {}
    if args.backbone.startswith(TIMM):
        found = _timm(args).get_pretrained_cfg(args.backbone.removeprefix(TIMM))
        said = {"image_mean": list(found.mean), "image_std": list(found.std)} if found else {}
    elif Path(name).is_file():
        return {}
    else:
        try:
            said, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision, **_where(name))
        except OSError:
            return {}
    known = ("image_mean", "image_std") if said.get("do_normalize", True) else ()
    return {f"backbone_{key}": said[key] for key in known if said.get(key)}


def load_backbone(student: U2PLForSemanticSegmentation, args: RunArguments) -> None:
    """Fill a backbone of transformers or timm with trained weights, see `weights_of_backbone`.

    Raises:
        InputError: no weights there, or weights of another network.
    """
    (name, revision), features = weights_of_backbone(args), student.backbone.features
    where, fresh = f"backbone weights {name}", f"--backbone_weights {FRESH} to start from fresh ones"
    another = f"{where}: of another network than --backbone {args.backbone}"
    # safetensors, torch, timm and transformers raise their own types.
    with refusing(Exception, where, f"; pass {fresh}"), refusing(RuntimeError, another, f"; pass its own, or {fresh}"):
        if args.backbone.startswith(TIMM):
            trained, missing = _timm_weights(args, features.config), []
        elif Path(name).suffix in (".pth", ".pt"):
            trained, missing = _dinov2_file(Path(name)), []
        else:
            model, report = type(features).from_pretrained(
                name, config=features.config, revision=revision, output_loading_info=True, **_where(name)
            )
            check_downloads(where, name, revision)
            trained, missing = model.state_dict(), sorted(report["missing_keys"])
    broken, wrong = first_not_finite(trained), mismatch(trained, features.state_dict())
    refuse([
        (wrong, f"{another} ({wrong}); pass its own, or {fresh}"),
        (broken, f"{where}: {broken} is not finite; pass others"),
        (2 * len(missing) > len(trained), f"{where}: {len(missing)} of the backbone's tensors are not there"),
    ])  # fmt: skip
    if missing:
        # Such as the norms that backbones have and classifiers have not.
        logger.info("%s: fresh are %s tensors, such as %s", where, len(missing), missing[0])
    features.load_state_dict(trained)


def _dinov2_file(path: Path) -> Mapping[str, Tensor]:
    content = read_weights_file(path)
    if not is_state_dict(content):
        raise ValueError("it is no state dict; a checkpoint of a whole network is for u2pl convert and --initial_model")
    return rename_dinov2(content)


def _timm_weights(args: RunArguments, config: TimmBackboneConfig) -> Mapping[str, Tensor]:
    file = args.backbone_weights
    if file is not None and not (file.endswith(".safetensors") and Path(file).is_file()):
        raise InputError(
            f"--backbone_weights {file}: pass a .safetensors file of this network, or leave it out to fetch timm's own"
        )
    model = _timm(args).create_model(
        config.backbone,
        features_only=True,
        out_indices=tuple(config.out_indices),
        pretrained=True,
        pretrained_cfg_overlay={} if file is None else {"file": file},
    )
    if file is None and (hub_id := model.pretrained_cfg.get("hf_hub_id")):
        check_downloads(f"backbone weights {args.backbone}", hub_id)
    return {f"_backbone.{name}": tensor for name, tensor in model.state_dict().items()}


def _where(name: str) -> dict:
    """Without the Hub, its cache is read at once: transformers would ask again and again for half a minute."""
    return {"local_files_only": not Path(name).exists() and not is_reachable()}
