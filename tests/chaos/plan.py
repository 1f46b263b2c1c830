"""What happens to a job: drawn from (seed, verb, executor), the same for ever."""

from dataclasses import dataclass
from random import Random
from typing import Literal

Fault = Literal["driver", "worker", "node", "disk"]
Hazard = Literal["none", "disk", "torn", "clock", "rival"]

HAZARDS: tuple[Hazard, ...] = ("none", "disk", "torn", "clock", "rival")
KILLS: dict[str, tuple[Fault, ...]] = {
    "inline": ("driver",),
    "ray": ("driver", "worker", "node"),
}
_SKEWS = ("-400d", "-26h", "-90s", "+90s", "+26h", "+400d")


@dataclass(frozen=True)
class Strike:
    """A blow to one start of the job; the next start goes on with what it left."""

    fault: Fault
    share: float  # of the commits still to come that are waited for, 0 to 1
    pause: float  # seconds from that commit to the blow
    skew: str = ""  # how wrong the clock is, in libfaketime's words
    rival: bool = False  # whether a second driver of the same run comes first


@dataclass(frozen=True)
class Plan:
    """Strikes one after the other; at the end comes a start that nobody disturbs.

    torn: whether files are torn before that.
    """

    strikes: tuple[Strike, ...]
    torn: bool
    chance: Random  # for what is torn


def draw(seed: int, job: str, kills: tuple[Fault, ...], interval: float) -> Plan:
    """job: its verb and executor, which with the seed decide everything. kills: which there may be.

    interval: seconds between two commits of the job undisturbed, which bounds the pauses.
    """
    chance = Random(f"{seed} {job}")
    hazard = chance.choice(HAZARDS)

    def strike(fault: Fault, **more: object) -> Strike:
        return Strike(fault, chance.random(), chance.uniform(0, interval), **more)

    strikes = [strike("disk")] if hazard == "disk" else []
    if chance.random() < 0.3:
        strikes.append(strike("driver"))
    skew = chance.choice(_SKEWS) if hazard == "clock" else ""
    strikes.append(strike(chance.choice(kills), skew=skew, rival=hazard == "rival"))
    return Plan(tuple(strikes), hazard == "torn", chance)
