"""Networks of folders that diffusers wrote: read from known places as known classes, believed in nothing else."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from pipeline.errors import UserError

CONFIG_BYTES = 1 << 20  # no configuration is longer
LARGEST, MOST_LAYERS, LONGEST = 1 << 16, 64, 8  # widths, layers, lists; Karlo has 2048, 20 and 4
_UNFIT = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(ImportError, AssertionError, SafetensorError, StrictDataclassError),
)


class Parts:
    """A folder of parts, each in a folder of its own name.

    whole, networks: what folder, and whose networks, a hint tells to give.
    """

    def __init__(
        self, path: Path | str, whole: str = "folder of diffusers", networks: str = "our kind"
    ) -> None:
        self.path, self.whole, self.networks = Path(path), whole, networks

    def described(self, name: str, kind: Any) -> dict[str, Any]:
        """The configuration of a part, with diffusers' defaults for what it leaves out.

        kind: the class that it has to be of. Raises UserError.
        """
        settings = self.json(name, "config.json")
        if settings.get("_class_name") != kind.__name__:
            raise UserError(
                f"{self.path / name} holds a {settings.get('_class_name')}, not a {kind.__name__}",
                f"give a {self.whole}",
            )
        with self.understood(name), torch.device("meta"):
            return dict(kind.from_config(settings).config)

    def network(
        self,
        name: str,
        kind: Any,
        settings: Mapping[str, Any],
        ours: nn.Module,
        free: Iterable[str] = (),
    ) -> Any:
        """A part's network, in fp32, after a look at ours, which may have no memory behind it.

        settings: what `described` gave. free: those that may be different. Raises UserError.
        """
        for key, value in ours.config.items():
            is_bound = not key.startswith("_") and key not in free
            if is_bound and plain(settings.get(key)) != plain(value):
                raise UserError(
                    f"{self.path / name} has {key} {settings.get(key)}, ours has {value} only",
                    f"give a folder with the networks of {self.networks}",
                )
        with self.understood(name):
            stored = sum(file.stat().st_size for file in (self.path / name).glob("*.safetensors"))
            numbers = sum(value.numel() for value in ours.state_dict().values())
            if numbers > stored:  # not one byte each: do not even make room for them
                raise ValueError(f"{stored:,} bytes of safetensors for {numbers:,} weights")
            found, told = kind.from_pretrained(
                str(self.path / name),
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
            for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                if told.get(what):  # diffusers fills in what is missing at random
                    raise ValueError(f"{what.replace('_', ' ')}: {list(told[what])[:3]}")
        return found

    def json(self, name: str, file: str) -> dict[str, Any]:
        """An object of a part's file, whose numbers are of sizes that networks have."""
        settings = self.unbounded_json(name, file)
        with self.understood(name):
            require_bounded(settings)
        return settings

    def unbounded_json(self, name: str, file: str) -> dict[str, Any]:
        """The same, with numbers of any size."""
        path = self.path / name / file
        with self.understood(name):
            if path.stat().st_size > CONFIG_BYTES:
                raise ValueError(f"{file} is longer than {CONFIG_BYTES:,} bytes")
            settings = json.loads(path.read_bytes())
            if not isinstance(settings, dict):
                raise ValueError(f"{file} holds no object")
        return settings

    @contextmanager
    def understood(self, name: str) -> Iterator[None]:
        """Whatever diffusers or we stumble over becomes one line with the part's path."""
        try:
            yield
        except _UNFIT as error:
            why = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.path / name} cannot be read: {why}",
                f"give a whole {self.whole}, with safetensors",
            ) from error


def require_bounded(settings: Any, most: int = LARGEST, depth: int = 0) -> None:
    """ValueError for numbers that no network has: building it would take all memory, or all time."""
    if depth > 4:
        raise ValueError("the configuration is nested too deep")
    if isinstance(settings, dict):
        for key, value in settings.items():
            require_bounded(value, MOST_LAYERS if "layers" in key else most, depth + 1)
    elif isinstance(settings, list):
        if len(settings) > LONGEST:
            raise ValueError(f"the configuration lists {len(settings)} things")
        for value in settings:
            require_bounded(value, most, depth + 1)
    elif isinstance(settings, int | float) and not -most <= settings <= most:
        raise ValueError(f"a size of {settings}")


def plain(value: Any) -> Any:
    """Lists for tuples."""
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value
