"""The diffusion decoder, teacher of the consistency decoder, as the verbs see it."""

from generators.consistency.config import Config
from generators.consistency.gate import TEACHERS as GATE
from generators.consistency.network import DecoderNetwork as Model
from generators.consistency.parts import load_teacher as load
from generators.consistency.parts import prepare_teacher as prepare
from generators.consistency.presets import TEACHERS as PRESETS
from generators.consistency.training import Task

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "load", "prepare"]
