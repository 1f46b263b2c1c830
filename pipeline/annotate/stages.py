"""Every stage that writes columns, and what its columns are called."""

from pipeline.annotate.aesthetic import AestheticAnnotator
from pipeline.annotate.clip import ClipAnnotator
from pipeline.annotate.faces import FacesAnnotator
from pipeline.annotate.image import ImageAnnotator
from pipeline.annotate.safety import SafetyAnnotator
from pipeline.annotate.text import TextAnnotator
from pipeline.annotate.text_in_image import TextInImageAnnotator
from pipeline.dedup.work import COLUMNS as DEDUP

_ANNOTATORS = (
    *(ImageAnnotator, TextAnnotator, ClipAnnotator, TextInImageAnnotator, FacesAnnotator),
    *(AestheticAnnotator, SafetyAnnotator),
)
_FIELDS = {annotator.name: annotator.columns for annotator in _ANNOTATORS} | {"dedup": DEDUP}
STAGES = {stage: tuple(field.name for field in fields) for stage, fields in _FIELDS.items()}
"""Stage -> its own columns, whether it has run or not; no name is in two of them."""
