"""Backbones of transformers, and of timm by way of transformers: configuration and trained weights."""

import logging
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from u2pl_hf.errors import InputError
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.training.arguments import BACKBONES, RunArguments

logger = logging.getLogger(__name__)

FRESH = "none"


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
    known = f"pass {', '.join(BACKBONES)}, or folder or Hub id of a backbone of transformers"
    if "/" not in args.backbone and not Path(args.backbone).is_dir():
        raise InputError(f"--backbone {args.backbone}: no such backbone; {known}")
    try:
        config = AutoConfig.from_pretrained(args.backbone, revision=args.backbone_revision)
    except (OSError, ValueError, ImportError) as error:
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


def backbone_normalisation(args: RunArguments) -> dict[str, list[float]]:
    """Mean and standard deviation of the images that the backbone's weights were trained on, where they say it."""
    name = args.backbone_weights or args.backbone
    if name == FRESH:
        return {}
    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return {}
    found = {f"backbone_{key}": said[key] for key in ("image_mean", "image_std") if said.get(key)}
    if found and said.get("do_normalize", True):
        return found
    return {}


def load_backbone(student: U2PLForSemanticSegmentation, args: RunArguments) -> None:
    """Fill a backbone of transformers with trained weights: --backbone_weights, or those where --backbone is.

    Raises:
        InputError: no weights there, or weights of another network.
    """
    name = args.backbone_weights or args.backbone
    if name == FRESH:
        return
    features = student.backbone.features
    revision = args.backbone_revision if name == args.backbone else None
    try:
        trained, report = type(features).from_pretrained(
            name, config=features.config, revision=revision, output_loading_info=True
        )
    except RuntimeError as error:
        raise InputError(
            f"backbone weights {name}: of another network than --backbone {args.backbone}; pass weights of that one, "
            f"or --backbone_weights {FRESH} to start from fresh ones"
        ) from error
    except Exception as error:  # safetensors, torch and transformers raise their own types
        raise InputError(
            f"backbone weights {name}: {_line(error)}; pass --backbone_weights {FRESH} to start from fresh ones"
        ) from error
    missing = sorted(report["missing_keys"])
    if 2 * len(missing) > len(features.state_dict()):
        raise InputError(
            f"backbone weights {name}: {len(missing)} of the backbone's tensors are not there, such as {missing[0]}"
        )
    if missing:
        # Such as the norms that backbones have and classifiers have not.
        logger.info(
            "backbone weights %s: %s tensors are not there and start fresh, such as %s", name, len(missing), missing[0]
        )
    features.load_state_dict(trained.state_dict())


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
