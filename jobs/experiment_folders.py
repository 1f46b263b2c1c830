"""Where everything of an experiment lies: data folders, captioner, first stage, generators, results."""

from dataclasses import dataclass

from jobs.experiment_presets import TRUTH
from pipeline import storage

CAPTIONS, TRUE_MIX, BLENDED = "captioner", "ground-truth", "blended"
TOKENS = "tokens"
RESULTS, RUN = "results", "blends"


@dataclass(frozen=True)
class Training:
    """One generator: which alt texts, which blend, which seed."""

    noise: float
    blend: str
    seed: int

    @property
    def name(self) -> str:
        return f"noise-{self.noise:g}/{self.blend}/seed-{self.seed}"

    @property
    def title(self) -> str:
        return f"noise {self.noise:g}, blend {self.blend}, seed {self.seed}"


@dataclass(frozen=True)
class Folders:
    """The layout below OUT, which is itself the data folder of the first noise."""

    out: str
    first_noise: float

    def data(self, noise: float) -> str:
        """A data folder: raw shards, captions, mixes, caches."""
        is_first = noise == self.first_noise
        return self.out if is_first else storage.join(self.out, f"noise-{noise:g}")

    @property
    def taught(self) -> str:
        """The data folder of what the captioner is fine-tuned on."""
        return storage.join(self.out, "taught")

    @property
    def held_out(self) -> str:
        """The data folder of the scenes that prompts are of."""
        return storage.join(self.out, "held-out")

    @property
    def captioner(self) -> str:
        return storage.join(self.out, "captioner")

    @property
    def first_stage(self) -> str:
        return storage.join(self.out, "first-stage")

    def mix(self, noise: float, blend: str) -> str:
        """The training shards of a blend. Ground truth has its own: with synthetic captions beside
        them, those would stand in where a page gave none.
        """
        return storage.join(self.data(noise), "mix", mix_name(blend))

    def cache(self, noise: float, blend: str) -> str:
        return storage.join(self.data(noise), "cache", f"{mix_name(blend)}-{TOKENS}")

    def generator(self, training: Training) -> str:
        return storage.join(self.out, "generators", training.name)

    def result(self, name: str) -> str:
        return storage.join(self.out, RESULTS, RUN, name)


def mix_name(blend: str) -> str:
    return TRUE_MIX if blend == TRUTH else BLENDED


def raw(folder: str) -> str:
    """The raw shards of a data folder, as SHARDS."""
    return storage.join(folder, "shards")
