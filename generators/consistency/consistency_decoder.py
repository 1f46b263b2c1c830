"""The consistency decoder (2303.01469) as the verbs see it: a diffusion decoder, distilled to two steps."""

from generators.consistency.config import Config
from generators.consistency.distillation import Task
from generators.consistency.gate import STUDENTS as GATE
from generators.consistency.parts import TEACHER as STARTS_AS
from generators.consistency.parts import load_student as load
from generators.consistency.parts import prepare_student as prepare
from generators.consistency.presets import STUDENTS as PRESETS
from generators.consistency.student import Student as Model
from generators.consistency.student import adapt

__all__ = ["GATE", "PRESETS", "STARTS_AS", "Config", "Model", "Task", "adapt", "load", "prepare"]
