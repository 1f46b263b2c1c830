"""Networks of folders that diffusers wrote: read from known places as known classes, believed in nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.foreign import UNFIT, read_object

INDEX = "diffusion_pytorch_model.safetensors.index.json"  # of weights in several files
LARGEST, MOST_LAYERS, LONGEST = 1 << 16, 64, 8  # widths, layers, lists; Karlo has 2048, 20 and 4


class Parts:
    """A folder of parts, each in a folder of its own name.

    whole, networks: what folder, and whose networks, a hint tells to give.
    """

    def __init__(
        self, path: Path | str, whole: str = "folder of diffusers", networks: str = "our kind"
    ) -> None:
        self.path, self.whole, self.networks = Path(path), whole, networks

    def described(self, name: str, kind: Any, *former: str) -> dict[str, Any]:
        """The configuration of a part, with diffusers' defaults for what it leaves out; what the class
        does not know is left out.

        kind: the class that it has to be of; it is not built, which sizes that are small one by one can
        make endless. former: names that this class had before. Raises UserError.
        """
        settings = self.json(name, "config.json")
        if settings.get("_class_name") not in (kind.__name__, *former):
            raise UserError(
                f"{self.path / name} holds a {short(settings.get('_class_name'))}, not a {kind.__name__}",
                f"give a {self.whole}",
            )
        with self.understood(name):
            given, *_ = kind.extract_init_dict(settings)
        return defaults(kind) | given

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
        for key, value in settings.items():
            own = ours.config.get(key)
            if key not in free and plain(value) != plain(own):
                raise UserError(
                    f"{self.path / name} has {key} {short(value)}, ours has {own} only",
                    f"give a folder with the networks of {self.networks}",
                )
        with self.understood(name):
            self._require_safetensors(name)
            stored = sum(file.stat().st_size for file in (self.path / name).glob("*.safetensors"))
            for held in (ours.state_dict().values(), ours.buffers()):
                numbers = sum(value.numel() for value in held)
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

    def _require_safetensors(self, name: str) -> None:
        """ValueError for an index that names files of another kind, which diffusers would unpickle."""
        if (self.path / name / INDEX).is_file():
            files = self.unbounded_json(name, INDEX)["weight_map"].values()
            if strange := [file for file in files if not file.endswith(".safetensors")]:
                raise ValueError(f"{INDEX} names {short(strange[0])}, which is no safetensors")

    def json(self, name: str, file: str) -> dict[str, Any]:
        """An object of a part's file, whose numbers are of sizes that networks have."""
        settings = self.unbounded_json(name, file)
        with self.understood(name):
            require_bounded(settings)
        return settings

    def unbounded_json(self, name: str, file: str) -> dict[str, Any]:
        """The same, with numbers of any size."""
        with self.understood(name):
            return read_object(self.path / name / file)

    @contextmanager
    def understood(self, name: str) -> Iterator[None]:
        """Whatever diffusers or we stumble over becomes one line with the part's path."""
        try:
            yield
        except (UserError, *UNFIT) as error:
            said = error.message if isinstance(error, UserError) else str(error)
            if isinstance(error, UserError) and str(self.path) in said:
                raise  # it was said of a file within
            why = " ".join(said.split())[:300]
            raise UserError(
                f"{self.path / name} cannot be read: {why}",
                f"give a whole {self.whole}, with safetensors",
            ) from error


def defaults(kind: Any) -> dict[str, Any]:
    """What a class of diffusers takes where a configuration leaves it out."""
    parameters = signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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


def short(value: Any) -> str:
    """What a stranger's file says, as a part of one line."""
    return " ".join(str(value).split())[:100]


def plain(value: Any) -> Any:
    """Lists for tuples."""
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value
