"""Optimizers from a task's parameter groups, and their state under the names of parameters."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jobs.fit_settings import Fit
from jobs.sharding import placed

_OURS = ("optimizer", "lr_scale")  # keys of a group that torch does not know


def build(model: nn.Module, groups: list[dict], settings: Fit) -> list[Optimizer]:
    """AdamW (1711.05101, algorithm 2) and, for the groups that ask for it, Muon (2502.16982)."""
    _refuse_strays(model, groups)
    found = []
    if adamw := [_group(g, settings) for g in groups if g.get("optimizer", "adamw") == "adamw"]:
        found.append(torch.optim.AdamW(adamw, betas=settings.betas, eps=settings.eps, fused=True))
    if muon := [_group(g, settings) for g in groups if g.get("optimizer", "adamw") == "muon"]:
        found.append(KernelMuon(muon, adjust_lr_fn="match_rms_adamw"))
    return found


class KernelMuon(torch.optim.Muon):
    """Muon that takes a convolution's kernel (out, in, h, w) for the matrix (out, in * h * w)."""

    def __init__(self, params: list[dict], **options: Any) -> None:
        # torch's own constructor refuses all but matrices.
        defaults = torch.optim.Muon([torch.zeros(1, 1)], **options).defaults
        Optimizer.__init__(self, params, defaults)

    def _init_group(self, group: dict, *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            # view, not flatten: a copy would be updated in the parameter's place.
            tensors[:] = [t.view(len(t), -1) if t.ndim > 2 else t for t in tensors]
        return has_complex


def described(groups: list[dict]) -> list[dict]:
    """What a run records of its groups: all but the tensors."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        | {"parameters": sum(parameter.numel() for parameter in group["params"])}
        for group in groups
    ]


def set_lr(optimizers: list[Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]


def state(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """`<parameter>/<key>` -> tensor; every state of AdamW and Muon is a tensor."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for optimizer in optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load(model: nn.Module, optimizers: list[Optimizer], saved: dict[str, Tensor]) -> None:
    """The inverse of `state`, onto the devices of the parameters, and cut as they are."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    of: dict[str, dict[str, Tensor]] = {}
    for path, value in saved.items():
        name, key = path.rsplit("/", 1)
        of.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if found := of.get(names[parameter]):  # without a gradient it has no state yet
                    optimizer.state[parameter] = {
                        key: placed(value, parameter).to(parameter.device)
                        for key, value in found.items()
                    }


def _group(group: dict, settings: Fit) -> dict[str, Any]:
    known = {key: value for key, value in group.items() if key not in _OURS}
    return {
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "lr_scale": group.get("lr_scale", 1.0),
        **known,
    }


def _refuse_strays(model: nn.Module, groups: list[dict]) -> None:
    """ValueError for what would silently not be trained or not be saved."""
    for group in groups:
        if group.get("optimizer", "adamw") not in ("adamw", "muon"):
            raise ValueError(f"a parameter group asks for optimizer {group['optimizer']!r}")
    grouped = {parameter for group in groups for parameter in group["params"]}
    if forgotten := [
        n for n, p in model.named_parameters() if p.requires_grad and p not in grouped
    ]:
        raise ValueError(f"in no parameter group, and not frozen: {', '.join(forgotten)}")
    if strangers := grouped - set(model.parameters()):
        shapes = ", ".join(str(tuple(parameter.shape)) for parameter in strangers)
        raise ValueError(
            f"in a parameter group, but not in the model: parameters of shape {shapes}"
        )
