"""faces: where faces are, by a small detector that is given by its path; needs the extra `faces`.

The detector is an ONNX file of the Ultra-Light-Fast-Generic-Face-Detector-1MB kind (Linzaer, MIT;
`slim` or `RFB` at any size): input float32 (1, 3, H, W), RGB as (value - 127) / 128, the picture
stretched to the size; outputs (1, N, 2) probabilities of ground and face, and (1, N, 4) boxes as
left, top, right, bottom in shares of the picture, of which those overlapping a better one fall.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import storage
from pipeline.annotate.annotator import View
from pipeline.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

VERSION = 1
"""Raised whenever the same pixels and model may get another answer."""

LEAST_PROBABILITY = 0.9
"""Below it, one in four of what the slim detector finds in photographs is a dog, a wheel or a blur."""
MOST_OVERLAP = 0.3  # intersection over union of two faces
MOST_FACES = 100  # the likeliest ones
MAX_MODEL_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Faces:
    """Found in one picture, the likeliest first."""

    boxes: np.ndarray  # float32 (n, 4): x_min, y_min, x_max, y_max, each 0 to 1


class FacesAnnotator:
    """An annotator: faces, how many; face_share, of the picture's area, of the largest; face_boxes.

    face_boxes holds x_min, y_min, x_max, y_max of one face after the other, each 0 to 1, as
    DataComp's face_bboxes. Raises UserError where there is no model at `path`, a local file or any
    fsspec URL.
    """

    name = "faces"
    columns = (
        pa.field("faces", pa.int32()),
        pa.field("face_share", pa.float32()),
        pa.field("face_boxes", pa.list_(pa.float32())),
    )
    needs_pixels = True
    batch_size = 1

    def __init__(self, path: str, least_probability: float = LEAST_PROBABILITY) -> None:
        self._path = storage.absolute(path)
        sha256 = hashlib.sha256(_model_bytes(self._path)).hexdigest()
        stem = self._path.rsplit("/", 1)[-1].removesuffix(".onnx")
        self.model = re.sub("[^0-9A-Za-z_-]", "_", stem)[:40] + f"-{sha256[:8]}"
        self.least_probability = least_probability
        self.config = {
            "version": VERSION,
            "model": sha256,
            "least_probability": least_probability,
            "most_overlap": MOST_OVERLAP,
        }
        self._session: InferenceSession | None = None
        self._input, self._size = "", (0, 0)

    @property
    def environment(self) -> dict:
        if self._session is None:
            return {}
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "device": "cpu"}

    def setup(self) -> None:
        """Loads the model; UserError where it is another kind, or the extra is not installed."""
        try:
            import onnxruntime
        except ImportError as e:
            raise UserError(
                "STAGES: faces needs onnxruntime, which is not installed",
                "pip install 'recaption[faces]'",
            ) from e
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # it warns of every weight of older exports
        try:
            session = onnxruntime.InferenceSession(
                _model_bytes(self._path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime raises kinds of its own for what it cannot read
            raise _no_detector(self._path, " ".join(str(e).split())[:200]) from e
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape, widths = inputs[0].shape, [o.shape[-1] for o in outputs]
        sized = len(shape) == 4 and shape[1] == 3 and all(isinstance(n, int) for n in shape[2:])
        if len(inputs) != 1 or not sized or widths != [2, 4]:
            raise _no_detector(self._path, f"it takes {shape} and gives {widths} per box")
        self._session = session
        self._input, self._size = inputs[0].name, (shape[3], shape[2])

    def prepare(self, view: View) -> Faces:
        """All the work: it is done in threads."""
        picture = Image.fromarray(view.pixels).resize(self._size, Image.Resampling.BILINEAR)
        values = (np.asarray(picture, np.float32) - 127) / 128
        fed = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
        odds, boxes = self._session.run(None, {self._input: fed})
        likely = odds[0, :, 1] > self.least_probability
        boxes = np.clip(boxes[0][likely], 0, 1)
        return Faces(boxes[best(boxes, odds[0][likely, 1])])

    def annotate(self, prepared: Sequence[Faces]) -> Sequence[dict]:
        return [
            {
                "faces": len(found.boxes),
                "face_share": float(_areas(found.boxes).max(initial=0)),
                "face_boxes": found.boxes.ravel().tolist(),
            }
            for found in prepared
        ]


def best(boxes: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Indices of boxes (n, 4), the likeliest first, without those that overlap a likelier one."""
    left = np.argsort(-odds, kind="stable")
    kept: list[int] = []
    while len(left) and len(kept) < MOST_FACES:
        first, left = left[0], left[1:]
        kept.append(int(first))
        corner = np.maximum(boxes[first, :2], boxes[left, :2])
        opposite = np.minimum(boxes[first, 2:], boxes[left, 2:])
        common = np.clip(opposite - corner, 0, None).prod(1)
        union = _areas(boxes[first]) + _areas(boxes[left]) - common
        left = left[common <= MOST_OVERLAP * union]
    return np.array(kept, np.int64)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1)


def _model_bytes(path: str) -> bytes:
    try:
        if storage.fingerprint(path).size > MAX_MODEL_BYTES:
            raise _no_detector(path, f"it is larger than {MAX_MODEL_BYTES >> 20} MiB")
        return storage.read_bytes(path)
    except OSError as e:
        why = e.strerror or " ".join(storage.scrub(str(e), path).split())
        raise _no_detector(path, why) from e


def _no_detector(path: str, why: str) -> UserError:
    return UserError(
        f"FACE_DETECTOR={storage.public(path)} is no face detector: {why}",
        "give the path of an Ultra-Light face detector's .onnx, such as version-slim-320.onnx",
    )
