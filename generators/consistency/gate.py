"""Whether two steps of a distilled decoder are as good as forty of its teacher's, and better at edges than the first stage."""

import numpy as np

from generators.consistency.decoders import ConsistencyDecoder, Decoder, DiffusionDecoder
from generators.consistency.quality import decoded, figures
from generators.first_stages.quality import reconstructed
from generators.preset import Beside, Gate
from pipeline.scenes.rendered import RenderedScenes

SCENES = 256
FIRST_STAGE, TEACHER = "kl:toy", "latent-decoder:toy"


def measure_teacher(teacher: DiffusionDecoder, scenes: RenderedScenes) -> dict[str, float]:
    """`psnr` and `edge_error` in 40 steps; `..._first_stage`: of the first stage's own decoder;
    `edge_ratio`: of the two errors.
    """
    images = scenes.first(SCENES).images
    return _beside_first_stage(teacher, images)


def measure_student(
    student: ConsistencyDecoder, scenes: RenderedScenes, beside: Beside
) -> dict[str, float]:
    """The same of the student in two steps, and `..._teacher` in 40; `psnr_below_teacher`: the difference.

    `..._undistilled`: of the teacher's network, sampled from as if it had been distilled: as it says the
    mean of what an image may be, it is no worse by PSNR. `psnr_to_path`: of one step, not against the
    image, but against where the teacher's 40 steps arrive from the same noise, which is what
    distillation teaches; `distillation_gains`: how far that is above the teacher's own network.
    """
    images, stage = scenes.first(SCENES).images, student.first_stage
    found = _beside_first_stage(student, images)
    teacher = beside.models[TEACHER]
    arrived = decoded(teacher, stage, images)
    plain = decoded(ConsistencyDecoder(teacher.model), stage, images)
    for name, made in {"teacher": arrived, "undistilled": plain}.items():
        found |= {f"{key}_{name}": value for key, value in figures(made, images).items()}
    found["psnr_below_teacher"] = found["psnr_teacher"] - found["psnr"]
    for name, model in {"": student.model, "_undistilled": teacher.model}.items():
        once = decoded(ConsistencyDecoder(model, steps=1), stage, images)
        found[f"psnr_to_path{name}"] = figures(once, arrived)["psnr"]
    gains = found["psnr_to_path"] - found["psnr_to_path_undistilled"]
    return found | {"distillation_gains": gains}


def _beside_first_stage(decoder: Decoder, images: np.ndarray) -> dict[str, float]:
    stage = decoder.first_stage
    found = figures(decoded(decoder, stage, images), images)
    own = figures(reconstructed(stage, images), images)
    found |= {f"{key}_first_stage": value for key, value in own.items()}
    found["edge_ratio"] = found["edge_error"] / found["edge_error_first_stage"]
    return found


TEACHERS = Gate("A16", {"edge_ratio": ("<=", 1.0)}, measure_teacher, first_stage=FIRST_STAGE)
STUDENTS = Gate(
    "A16",
    {
        "psnr_below_teacher": ("<=", 1.0),
        "edge_ratio": ("<=", 1.0),
        "distillation_gains": (">=", 0.0),
    },
    measure_student,
    first_stage=FIRST_STAGE,
    base=TEACHER,
    beside=(TEACHER,),
)
