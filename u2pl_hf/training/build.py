"""From arguments to model and optimizer, and the random draws of a step."""

import numpy as np
import torch

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.evaluation.pictures import default_palette
from u2pl_hf.system.precision import build_sgd
from u2pl_hf.training.recipe.arguments import RunArguments
from u2pl_hf.training.weights.backbones import backbone_config, backbone_normalisation


def build_model(
    args: RunArguments, class_names: list[str], palette: list[list[int]] | None = None
) -> U2PLForSemanticSegmentation:
    """The student with fresh weights; SupOnly has no representation head."""
    other = backbone_config(args)
    config = U2PLConfig(
        backbone=args.backbone if other is None else other,
        stem=args.stem,
        base_width=args.base_width,
        **({"output_stride": args.output_stride} if other is None else backbone_normalisation(args)),
        head_channels=args.head_channels,
        representation_channels=0 if args.method == "suponly" else args.representation_channels,
        aspp_dilations=args.aspp_dilations,
        dropout=args.dropout,
        auxiliary_head=args.auxiliary_head,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
        palette=palette or default_palette(len(class_names)),
    )
    return U2PLForSemanticSegmentation(config)


def build_optimizer(args: RunArguments, model: U2PLForSemanticSegmentation) -> torch.optim.SGD:
    """SGD with the heads' learning rate scaled by head_lr_factor."""
    groups = [
        {"params": list(model.backbone_parameters()), "factor": 1.0},
        {"params": list(model.head_parameters()), "factor": args.head_lr_factor},
    ]
    return build_sgd(groups, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)


def ahead_seed(seed: int, number: int) -> int:
    """The seed of what is drawn ahead for a pass, as another pass may do; see `seed_draws` for the arguments."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)[0] >> 1)


def seed_draws(seed: int, number: int) -> None:
    """Make every random draw of a forward pass a function of (seed, number): resuming then needs no generator state.

    Args:
        seed: the run's.
        number: of the pass, counted over steps, accumulated passes and processes.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]))
