"""What the verbs that draw from a trained model share: which one, and how its tokens are chosen."""

from dataclasses import dataclass

from jobs.job import require


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A trained model, and how it draws."""

    ckpt: str
    """The folder of a trained model."""
    seed: int = 0
    """Another seed gives other pictures."""
    temperature: float = 1.0
    """Below 1 likelier tokens are taken more often."""
    top_k: int = 0
    """Only the so many likeliest tokens; 0 takes all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    guidance: float = 1.0
    """Above 1 away from what the model draws without a caption; needs one trained with --drop."""
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        require(self, temperature=(0, None), top_k=(0, None), top_p=(0, 1), guidance=(0, None))
        require(self, threads=(1, None), seed=(0, None))

    @property
    def choosing(self) -> dict[str, float]:
        """The fields of `generators.dalle.decode.Choice`."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "guidance": self.guidance,
        }
