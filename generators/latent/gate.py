"""Whether a latent diffusion model draws what descriptive captions say."""

from generators.latent.generator import Latent
from generators.preset import Gate
from generators.unclip.following import followed
from pipeline.scenes.rendered import RenderedScenes

PROMPTS = 256
GUIDANCE = 1.5


def measure(latent: Latent, scenes: RenderedScenes) -> dict[str, float]:
    """Shares of the attributes that descriptive captions of held-out scenes state and images show."""
    texts = scenes.first(PROMPTS).texts
    drawn = latent.images(texts, [0] * PROMPTS, guidance=GUIDANCE)
    return followed(texts, drawn, scenes.level).figures()


GATE = Gate(
    "A16", {"attributes": (">=", 0.9)}, measure, first_stage="kl:toy-latent", text="bundled"
)
