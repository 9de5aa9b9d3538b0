"""SGD and AdamW in fused kernels, and their state by the names of the parameters."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from u2pl_hf.training.recipe.arguments import RunArguments


def build_optimizer(args: RunArguments, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run; a group's rate is the run's times its `factor`, which is head_lr_factor for the heads."""
    parts = (model.backbone_parameters(), 1.0), (model.head_parameters(), args.head_lr_factor)
    groups = [{"params": [p for p in part if p.requires_grad], "factor": factor} for part, factor in parts]
    # A frozen backbone leaves the heads alone.
    groups = [group for group in groups if group["params"]]
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if args.optimizer == "sgd":
        return build_sgd(groups, momentum=args.momentum, **options)
    return _laid_out(torch.optim.AdamW(groups, fused=_has_kernel(groups), **options))


def build_sgd(groups: list[dict], **options) -> torch.optim.SGD:
    """SGD that updates all parameters of a group in one fused kernel; arguments as for torch's SGD."""
    optimizer = _laid_out(torch.optim.SGD(groups, **options, fused=_has_kernel(groups)))
    if options["momentum"]:
        # A first step that the gradient scaler skips would leave the fused kernel's new buffers unwritten. From zero,
        # the first step's momentum is its gradient, as it should be.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer remembers: `momentum_buffer/PARAMETER`, `exp_avg/PARAMETER` and so on -> tensor.

    Learning rates are set anew at each step.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": tensor
        for parameter, state in optimizer.state.items()
        for kind, tensor in state.items()
        if tensor is not None
    }


def load_named_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give an optimizer what `named_state` of an equal one told."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbers, own = {name: number for number, name in enumerate(order)}, defaultdict(dict)
    for key, tensor in state.items():
        kind, _, name = key.rpartition("/")
        # Checkpoints of before hold momentum by the parameter's number.
        own[numbers[name] if kind else int(name)][kind or "momentum_buffer"] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(own)})


def _has_kernel(groups: list[dict]) -> bool | None:
    return groups[0]["params"][0].device.type in ("cpu", "cuda") or None


def _laid_out(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.register_load_state_dict_post_hook(_lay_out_state)
    return optimizer


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded tensors the strides of their parameter.

    Checkpoints hold contiguous tensors. Fused kernels walk through memory without looking at strides, and foreach
    kernels fall back to a loop.
    """
    for parameter, state in optimizer.state.items():
        for kind, tensor in state.items():
            if tensor.shape == parameter.shape and tensor.stride() != parameter.stride():
                state[kind] = torch.empty_like(parameter).copy_(tensor)
