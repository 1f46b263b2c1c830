"""unCLIP's decoder as the verbs see it: its config, network, training, presets, and what it is built from."""

from functools import partial

from generators.unclip.decoder_config import Config
from generators.unclip.decoder_gate import GATE
from generators.unclip.decoder_parts import load_words as load
from generators.unclip.decoder_parts import prepare as prepared
from generators.unclip.decoder_presets import DECODERS as PRESETS
from generators.unclip.decoder_training import Task
from generators.unclip.pixel_decoder import PixelDecoder as Model
from generators.unclip.pixel_decoder import adapt

prepare = partial(prepared, name="decoder")

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "adapt", "load", "prepare"]
