"""Stages that die, for tests of what survives them."""

import os
import signal
import time
from dataclasses import dataclass

from pipeline.samples import Sample
from tests.support.stages import ColourStage


@dataclass
class KillerStage(ColourStage):
    """Takes its whole process down at samples whose text says so, as a decoder's bug would."""

    def captions(self, sample: Sample) -> dict[str, str]:
        if sample.text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().captions(sample)


@dataclass
class SlowStage(ColourStage):
    """Takes its time, so that a test can kill it in the middle; touches `started` when it begins."""

    seconds: float = 0.02
    hang_at: str = ""  # the text of a sample that never ends

    def captions(self, sample: Sample) -> dict[str, str]:
        time.sleep(3600 if self.hang_at and sample.text == self.hang_at else self.seconds)
        return super().captions(sample)
