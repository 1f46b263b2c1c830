"""What the verbs that draw from trained models share: which ones, and how they draw."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jobs.job import require

if TYPE_CHECKING:
    from generators.diffusion.samplers import Sampling


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A trained model, or a stack of them, and how it draws. What the model makes no use of is refused."""

    ckpt: str
    """The folder of a trained model: dalle, decoder, glide, latent, vae, gan; or of a diffusers
    UnCLIPPipeline."""
    prior: str = ""
    """decoder: the folder of a trained prior or prior-ar, by way of which it draws captions."""
    upsamplers: str = ""
    """decoder: folders of trained upsamplers that follow it, in their order, with commas between."""
    clip: str = ""
    """decoder: the towers that it was trained with, as `train` was given them."""
    first_stage: str = ""
    """latent: the folder of the first stage that it was trained with."""
    text: str = ""
    """latent: the text encoder that it was trained with, as `train` was given it."""
    decoder: str = ""
    """latent: the folder of a trained consistency decoder, in place of the first stage's own."""
    lora: str = ""
    """latent: the folder or .safetensors file of an adapter, ours, peft's or diffusers'."""
    lora_scale: float = 1.0
    """latent: how much that adapter tells; at 0 nothing."""
    controlnet: str = ""
    """latent: the folder of a ControlNet that was trained for it."""
    control: str = ""
    """latent: an image, whose edges or segments, whatever that ControlNet knows, the pictures will have."""
    control_scale: float = 1.0
    """latent: how much that ControlNet tells; at 0 nothing."""
    size: str = ""
    """latent: width and height in pixels, as 320x192, in place of the size that it was trained at."""
    seed: int = 0
    """Another seed gives other pictures."""
    temperature: float = 1.0
    """dalle: below 1 likelier tokens are taken more often."""
    top_k: int = 0
    """dalle: only the so many likeliest tokens; 0 takes all."""
    top_p: float = 1.0
    """dalle: only the likeliest tokens that together have this probability."""
    guidance: float = 1.0
    """dalle, decoder, glide, latent: above 1 away from what is drawn without a caption; needs a model trained
    with dropped ones."""
    via: Literal["prior", "text", "caption"] = "prior"
    """decoder: its image embedding is the prior's, the caption's own in its place, or none."""
    prior_guidance: float = 1.0
    """decoder: the prior's own guidance."""
    candidates: int = 2
    """decoder: embeddings that the prior draws for a caption, of which the nearest to it is kept."""
    sampler: str = ""
    """decoder, glide, latent: ddpm, ddim or dpm++, in place of the model's own."""
    steps: str = ""
    """decoder, glide, latent: 50, ddim50, fast27 or sections as 10,10,5, in place of the model's own."""
    eta: float | None = None
    """decoder, glide, latent: DDIM's share of fresh noise, by default none."""
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        require(self, temperature=(0, None), top_k=(0, None), top_p=(0, 1), guidance=(0, 1000))
        require(self, threads=(1, None), seed=(0, None), prior_guidance=(0, 1000))
        require(self, candidates=(1, 1000), lora_scale=(-100, 100), control_scale=(0, 100))
        if self.eta is not None:
            require(self, eta=(0, 1))
        _ = self.pixels  # raises where there are none

    @property
    def choosing(self) -> dict[str, float]:
        """The fields of `generators.dalle.decode.Choice`."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "guidance": self.guidance,
        }

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width that were asked for; UserError where `size` is none."""
        from pipeline.errors import UserError

        if not self.size:
            return None
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.size)
        if not found:
            raise UserError(f"SIZE={self.size} is no size", "give width and height, as 320x192")
        return int(found[2]), int(found[1])

    def sampling(self, own: "Sampling") -> "Sampling":
        """A diffusion model's own settings, or what was given in their place."""
        from dataclasses import replace

        given: dict[str, Any] = {"sampler": self.sampler, "steps": self.steps, "eta": self.eta}
        return replace(own, **{name: value for name, value in given.items() if value})


def given(config: Any, names: Iterable[str]) -> list[str]:
    """Those of a verb's settings that are not what they are by default."""
    defaults = {field.name: field.default for field in fields(config)}
    return [name for name in names if getattr(config, name) != defaults[name]]


def require_text(flag: str, text: str) -> None:
    """UserError for the bytes of a command line that are no text."""
    from pipeline.errors import UserError

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{flag} is no text in UTF-8", "write it anew") from error
