"""unCLIP's upsamplers as the verbs see them: 64 to 256 pixels, 256 to 1024, and toys."""

from generators.unclip.upsampler_network import Config, Model
from generators.unclip.upsampler_presets import PRESETS
from generators.unclip.upsampler_quality import GATE
from generators.unclip.upsampler_training import Task

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task"]
