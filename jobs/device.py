"""Where models compute: on the GPUs of the cluster or of this machine, else on the CPU."""

from typing import Protocol


class Placed(Protocol):
    """The settings of a verb whose workers hold a model."""

    device: str  # auto | cpu | cuda
    executor: str
    address: str


def device_of(config: Placed) -> str:
    """`cpu` or `cuda`, as asked for; `auto` looks at the cluster that the workers will be on."""
    if config.device != "auto":
        return config.device
    if config.executor == "ray" and config.address:
        from jobs import cluster

        cluster.connect(config.address, cpus=0)
        return "cuda" if cluster.gpus() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
