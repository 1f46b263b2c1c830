"""A model in slices: FSDP2, under which each process keeps its rows of every weight."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from jobs.fit_settings import Fit
from jobs.ranks import Ranks
from pipeline.errors import UserError

_ROWS = 0  # the dimension along which FSDP2 cuts


def require_shardable(model: nn.Module, groups: list[dict], settings: Fit) -> None:
    """UserError that names what cannot be trained in slices."""
    if settings.precision == "fp16":
        raise UserError(
            "--precision fp16 does not go with --parallel fsdp: a slice cannot tell an overflow of"
            " another one",
            "give --precision bf16",
        )
    if any(group.get("optimizer") == "muon" for group in groups):
        raise UserError(
            "--parallel fsdp does not go with Muon, which needs whole matrices",
            "give --parallel ddp, or a recipe with AdamW",
        )
    if scalars := [name for name, p in model.named_parameters() if not p.ndim]:
        raise UserError(
            f"--parallel fsdp cannot cut a single number: {', '.join(scalars)}",
            "give --parallel ddp",
        )


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], settings: Fit, device: torch.device, ranks: Ranks
) -> None:
    """Cuts every parameter into rows, block by block, in place; Zhao et al. (2304.11277).

    The parameters are others afterwards. All processes begin with what the first one has. On a GPU
    in bf16 the weights are gathered as such; gradients are summed in fp32.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    is_half = settings.precision == "bf16" and device.type == "cuda"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # times and scales stay exact; autocast casts what it should
    )
    for module in [*blocks, model]:
        for tensor in [*module.parameters(), *module.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
                dist.broadcast(tensor.data, 0)
        fully_shard(module, mesh=mesh, mp_policy=policy)


def local(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor: its rows, which share memory with it, or all of it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def rows(total: int, rank: int, world: int) -> tuple[int, int]:
    """Those of `total` rows, from and up to, that a rank keeps: as torch.chunk cuts them."""
    size = -(-total // world)
    return min(rank * size, total), min((rank + 1) * size, total)


def own_rows(tensor: DTensor) -> tuple[int, int]:
    """Those that this process keeps."""
    mesh = tensor.device_mesh
    found = rows(len(tensor), mesh.get_local_rank(), mesh.size())
    if not tensor.placements[0].is_shard(_ROWS) or found[1] - found[0] != len(local(tensor)):
        raise ValueError(f"{tensor.placements} of {tuple(tensor.shape)} is not cut into rows")
    return found


def placed(saved: Tensor, like: Tensor | None) -> Tensor:
    """What this process keeps of a saved tensor, or of one that is read by its rows.

    like: cut as it is to be, or None; a saved tensor of another shape is not cut.
    """
    if not isinstance(like, DTensor) or tuple(saved.shape) != tuple(like.shape):
        return saved[...]
    start, stop = own_rows(like)
    return DTensor.from_local(
        saved[start:stop].to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def gathered(tensors: Mapping[str, Tensor], *, keeps: bool) -> dict[str, Tensor]:
    """Whole tensors, on the CPU where they had been cut; {} where `keeps` is not set.

    All processes take part, one tensor after the other, so that no GPU holds all of them.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = tensor
        if isinstance(tensor, DTensor):
            whole = tensor.full_tensor()
            whole = whole.cpu() if keeps else whole
        if keeps:
            found[name] = whole
    return found


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All weights in the model for as long as the block lasts, for calls of any of its methods.

    All processes enter and leave together; inside, each may do what it likes. What is not sharded
    is whole anyway.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        if sharded:
            model.reset_iter_state()  # forgets the calls, and reshards
        for module in sharded:
            # The weights of the root are needed again as soon as the backward pass begins.
            module.set_reshard_after_forward(module is not model, recurse=False)


def versions(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Its buffers, and how often each of them was changed."""
    return {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}


def make_alike(model: nn.Module, before: dict[str, tuple[Tensor, int]], ranks: Ranks) -> None:
    """Buffers that were changed since (BatchNorm's averages) become those of the first process."""

    def changed() -> list[str]:
        now = versions(model)
        return [n for n, (b, v) in now.items() if b is not before[n][0] or v != before[n][1]]

    for name in ranks.of_first(changed):
        dist.broadcast(model.get_buffer(name), 0)
