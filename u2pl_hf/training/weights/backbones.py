"""Backbones of transformers, and of timm by way of transformers: configuration and trained weights."""

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import check_downloads, first_not_finite
from u2pl_hf.hub_cache import is_reachable
from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.training.recipe.arguments import BACKBONES, FRESH, TIMM, RunArguments
from u2pl_hf.training.weights.weights_file import check_there

logger = logging.getLogger(__name__)


def backbone_config(args: RunArguments) -> PreTrainedConfig | None:
    """Configuration of the backbone that --backbone names; None for a ResNet of this package.

    Raises:
        InputError: no such folder or model on the Hub, not a backbone, or no such stage.
    """
    if args.backbone in BACKBONES:
        if args.backbone_stages:
            raise InputError(
                f"--backbone_stages goes with backbones of transformers, not with --backbone {args.backbone}"
            )
        return None
    if args.backbone.startswith(TIMM):
        return _timm_config(args)
    known = f"pass {', '.join(BACKBONES)}, or folder or Hub id of a backbone of transformers"
    if "/" not in args.backbone and not Path(args.backbone).is_dir():
        raise InputError(f"--backbone {args.backbone}: no such backbone; {known}")
    try:
        config = AutoConfig.from_pretrained(
            args.backbone, revision=args.backbone_revision, trust_remote_code=False, **_where(args.backbone)
        )
    except Exception as error:  # transformers and huggingface_hub raise their own types for wrong fields
        raise InputError(f"--backbone {args.backbone}: {_line(error)}; {known}") from error
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise InputError(f"--backbone {args.backbone}: models of type {config.model_type} are no backbones; {known}")
    if args.backbone_stages:
        try:
            config.out_features = args.backbone_stages
        except ValueError as error:
            raise InputError(
                f"--backbone_stages {' '.join(args.backbone_stages)}: pass some of {' '.join(config.stage_names)}, "
                "in this order"
            ) from error
    # The checkpoint's own classes mean nothing here, and may be thousands.
    config.num_labels = 2
    return config


def _timm_config(args: RunArguments) -> TimmBackboneConfig:
    name = args.backbone.removeprefix(TIMM)
    if not _timm(args).is_model(name.partition(".")[0]):
        raise InputError(f"--backbone {args.backbone}: timm has no {name}; timm.list_models() has all names")
    if args.backbone_stages:
        raise InputError(f"--backbone_stages does not go with --backbone {args.backbone}: timm's last four are taken")
    # 32 is what nearly all have, and not all take it as an option.
    stride = None if args.output_stride == 32 else args.output_stride
    config = TimmBackboneConfig(backbone=name, output_stride=stride)
    try:
        # Some have no such stride, some no maps with channels first, some take images of one size only.
        with torch.device("meta"):
            network = U2PLForSemanticSegmentation(U2PLConfig(backbone=config, representation_channels=0)).eval()
            network(torch.empty(1, 3, args.crop_size, args.crop_size))
    except Exception as error:  # each in its own way
        raise InputError(
            f"--backbone {args.backbone} cannot be used{f' with --output_stride {stride}' if stride else ''} "
            f"({_line(error)}): pass {'--output_stride 32, or ' if stride else ''}another network, such as "
            "timm/mobilenetv2_100"
        ) from error
    return config


def _timm(args: RunArguments):
    """The library, which is not among the requirements: it needs torchvision."""
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise InputError(
            f"--backbone {args.backbone} needs timm and a torchvision that fits torch ({_line(error)}): "
            "pip install 'u2pl_hf[timm]'"
        ) from error


def backbone_normalisation(args: RunArguments) -> dict[str, list[float]]:
    """Mean and deviation of the images that the backbone's weights learned from, as U2PLConfig's fields, if known."""
    name = args.backbone_weights or args.backbone
    if name == FRESH:
        return {}
    if args.backbone.startswith(TIMM):
        said = _timm(args).get_pretrained_cfg(args.backbone.removeprefix(TIMM))
        return {} if said is None else {"backbone_image_mean": list(said.mean), "backbone_image_std": list(said.std)}
    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=_revision(args), **_where(name))
    except OSError:
        return {}
    if not said.get("do_normalize", True):
        return {}
    return {f"backbone_{key}": said[key] for key in ("image_mean", "image_std") if said.get(key)}


def load_backbone(student: U2PLForSemanticSegmentation, args: RunArguments) -> None:
    """Fill a backbone of transformers with trained weights: --backbone_weights, or those where --backbone is.

    Raises:
        InputError: no weights there, or weights of another network.
    """
    name, features = args.backbone_weights or args.backbone, student.backbone.features
    if args.backbone_weights is not None and not args.backbone.startswith(TIMM):
        check_there(f"--backbone_weights {name}", name)
    try:
        if args.backbone.startswith(TIMM):
            trained, missing = _timm_weights(args, features.config), []
        else:
            model, report = type(features).from_pretrained(
                name, config=features.config, revision=_revision(args), output_loading_info=True
            )
            check_downloads(f"backbone weights {name}", name, _revision(args))
            trained, missing = model.state_dict(), sorted(report["missing_keys"])
    except RuntimeError as error:
        raise InputError(
            f"backbone weights {name}: of another network than --backbone {args.backbone}; pass weights of that one, "
            f"or --backbone_weights {FRESH} to start from fresh ones"
        ) from error
    except InputError:
        raise
    except Exception as error:  # safetensors, torch, timm and transformers raise their own types
        raise InputError(
            f"backbone weights {name}: {_line(error)}; pass --backbone_weights {FRESH} to start from fresh ones"
        ) from error
    if broken := first_not_finite(trained):
        raise InputError(f"backbone weights {name}: {broken} is not finite; pass others")
    if 2 * len(missing) > len(trained):
        raise InputError(f"backbone weights {name}: {len(missing)} of the backbone's tensors are not there")
    if missing:
        # Such as the norms that backbones have and classifiers have not.
        logger.info("backbone weights %s: fresh are %s tensors, such as %s", name, len(missing), missing[0])
    features.load_state_dict(trained)
    logger.info("backbone from %s", name)


def _timm_weights(args: RunArguments, config: TimmBackboneConfig) -> Mapping[str, Tensor]:
    file = {}
    if args.backbone_weights is not None:
        path = Path(args.backbone_weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise InputError(
                f"--backbone_weights {path}: {'' if path.exists() else 'no such file; '}pass a .safetensors file of "
                "this network, or leave it out to fetch timm's own"
            )
        file = {"file": args.backbone_weights}
    model = _timm(args).create_model(
        config.backbone,
        features_only=True,
        out_indices=tuple(config.out_indices),
        pretrained=True,
        pretrained_cfg_overlay=file,
    )
    if not file and (hub_id := model.pretrained_cfg.get("hf_hub_id")):
        check_downloads(f"backbone weights {args.backbone}", hub_id)
    return {f"_backbone.{name}": tensor for name, tensor in model.state_dict().items()}


def _where(name: str) -> dict:
    """Without the Hub, its cache is read at once: transformers would ask again and again for half a minute."""
    return {"local_files_only": not Path(name).exists() and not is_reachable()}


def _revision(args: RunArguments) -> str | None:
    return args.backbone_revision if args.backbone_weights is None else args.backbone_weights_revision


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
