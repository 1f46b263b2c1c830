"""A chat model as a captioner: prompts and pictures in, captions out that the gate has judged."""

import io
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from PIL import Image

from captioner.captioner import FRIENDLY_BATCH, BaseCaptioner, Caption
from captioner.chat import Answer, ChatModel, Question, folder_name, open_chat_model, parse_name
from captioner.gate import judge
from captioner.load import CaptionerInfo
from captioner.manners import fault, tidied, without_thoughts
from captioner.prompts import Prompt, load_prompts
from captioner.settings import DecodeSettings
from captioner.sight import bare, require_sight
from pipeline import storage
from pipeline.errors import UserError
from pipeline.images import decode, probe
from pipeline.limits import room
from pipeline.schemas import OK

QUALITY = 90
DECODE = {
    "short": DecodeSettings(max_tokens=80, min_tokens=0, no_repeat_ngram=0),
    "long": DecodeSettings(max_tokens=400, min_tokens=0, no_repeat_ngram=0),
}
"""Lengths that well-behaved answers stay below; the rest is what the protocol has no word for."""
_SETTABLE = {"max_tokens", "temperature", "top_p", "seed"}

_BYTES_PER_PIXEL = 13  # the decoded picture, Pillow's copy, and what resizing takes
_FENCE = re.compile(r"```[\w-]*\s(.*?)```", re.DOTALL)
_REFUSED = ("boilerplate", "leak", "markup")  # of the faults; others may be true of an image
_JOINERS = "\u200c\u200d"  # invisible, and needed to write Persian or a family's emoji


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How a chat model is asked. The prompts and `max_side` decide its captions, the rest does not."""

    prompts: Mapping[str, Prompt] = field(default_factory=load_prompts)
    max_side: int = 768  # pixels; a larger picture costs more tokens
    journal: str = ""  # a folder for the journals, one for each model; "" keeps none
    in_flight: int = 64
    deadline_sec: float = 120.0

    @property
    def preparation(self) -> str:
        return f"longer side at most {self.max_side}, jpeg quality {QUALITY}"


class ChatCaptioner(BaseCaptioner):
    """Writes each style by its prompt; failed answers are captions of status 'failed'."""

    def __init__(
        self,
        model: ChatModel,
        settings: ChatSettings,
        decode: Mapping[str, DecodeSettings] | None = None,
    ) -> None:
        self.name, self.model, self.settings = model.name, model, settings
        self.styles = tuple(settings.prompts)
        self.decode = DECODE | settable(decode or {})
        self.environment = {"device": "server" if model.name.startswith("openai:") else "vllm"}
        self.preparation = settings.preparation
        self.batches_in_flight = 2 * math.ceil(settings.in_flight / FRIENDLY_BATCH)
        self._unproven = threading.Semaphore(1)  # until one batch has seen that images arrive

    def prepare(self, data: bytes) -> bytes:
        """Encoded image -> an upright RGB JPEG; thread-safe; raises `pipeline.images.BadImage`."""
        return small_jpeg(data, self.settings.max_side)

    def caption(
        self, prepared: Sequence[bytes], keys: Sequence[str], styles: Sequence[str] | None = None
    ) -> list[dict[str, Caption]]:
        """One batch: a caption per image and style; thread-safe.

        Raises UserError where the server is down, or where images do not reach the model.
        """
        styles = self.known(styles)
        if not prepared or not styles:
            return [{} for _ in prepared]
        questions = [
            self._question(key, image, style)
            for key, image in zip(keys, prepared, strict=True)
            for style in styles
        ]
        answers = self._ask(questions, len(styles))
        told = [f"{question.system} {question.text}" for question in questions]
        captions = [make_caption(a, said) for a, said in zip(answers, told, strict=True)]
        starts = range(0, len(captions), len(styles))
        return [dict(zip(styles, captions[i : i + len(styles)], strict=True)) for i in starts]

    def close(self) -> None:
        """Ends what is in flight."""
        self.model.close()

    def _question(self, key: str, image: bytes, style: str) -> Question:
        prompt, decode = self.settings.prompts[style], self.decode[style]
        return Question(
            key=key,
            text=prompt.user,
            system=prompt.system,
            image=image,
            **{name: getattr(decode, name) for name in _SETTABLE},
        )

    def _ask(self, questions: list[Question], stride: int) -> list[Answer]:
        """Asks; the first batch also asks its first prompt without an image (see captioner.sight)."""
        if not self._unproven.acquire(blocking=False):
            return self.model.ask(questions)
        proven = False
        try:
            *answers, blind = self.model.ask([*questions, bare(questions[0])])
            seen = [a for a in answers[::stride] if a.finish != "failed"]
            proven = bool(seen)
            kept = self.settings.journal
            kept = kept and storage.join(kept, folder_name(self.name))
            require_sight(self.name, seen, blind, kept)
        finally:
            if not proven:
                self._unproven.release()
        return answers


def open_chat_captioner(
    name: str, settings: ChatSettings, decode: Mapping[str, DecodeSettings] | None = None
) -> ChatCaptioner:
    """The captioner `openai:<model>@<url>` or `vllm:<model>`; raises UserError."""
    public = parse_name(name).public
    settable(decode or {})
    model = open_chat_model(
        name,
        journal=settings.journal and storage.join(settings.journal, folder_name(public)),
        in_flight=settings.in_flight,
        deadline_sec=settings.deadline_sec,
    )
    return ChatCaptioner(model, settings, decode)


def describe_chat(name: str, settings: ChatSettings) -> CaptionerInfo:
    """What a run records of it: the model but not its server, which may move; asks nothing."""
    public = parse_name(name).public
    return CaptionerInfo(
        name=public,
        styles=tuple(settings.prompts),
        weights=public,
        image_size=settings.max_side,
        preprocessing=f"upright rgb, {settings.preparation}",
        decode=DECODE,
        off_image=dict.fromkeys(settings.prompts),
        prompts={style: prompt.identity for style, prompt in settings.prompts.items()},
    )


def small_jpeg(data: bytes, max_side: int) -> bytes:
    """Any image as an upright RGB JPEG whose longer side is at most `max_side`; raises BadImage."""
    info = probe(data)
    shrunk = min(info.width, info.height) * max_side / max(info.width, info.height)
    pixels = decode(data, min_side=max(1, round(shrunk)))
    with room(pixels.shape[0] * pixels.shape[1] * _BYTES_PER_PIXEL):
        image = Image.fromarray(pixels)
        scale = max_side / max(image.size)
        if scale < 1:
            sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=3.0)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


def make_caption(answer: Answer, instruction: str = "") -> Caption:
    """An answer as a caption: cleaned, and judged by what can be known without likelihoods.

    instruction: what the model was told. A refusal, a leak of the instruction or markup is a failure,
    whose text stays to be looked at.
    """
    if answer.finish == "failed":
        nothing = Caption("", 0, math.nan, "length", math.nan, math.nan, "failed")
        return replace(nothing, reason=answer.reason)
    cleaned = _cleaned(answer.text)
    text = " ".join(cleaned.split())
    status, reason = judge(text, answer.finish, None, None), ""
    if status == OK and (found := fault(cleaned, instruction)) in _REFUSED:
        status, reason = "failed", found
    return Caption(
        text=text,
        num_tokens=answer.completion_tokens,
        logprob=math.nan,
        finish=answer.finish,
        similarity=math.nan,
        similarity_min=math.nan,
        status=status,
        reason=reason,
    )


def clean(text: str) -> str:
    """One line of visible characters, without code fence, preamble, wrapping quotes and opener."""
    return " ".join(_cleaned(text).split())


def _cleaned(text: str) -> str:
    """The same, with the lines of a list still apart."""
    text = "".join(
        c if c.isprintable() or c.isspace() or c in _JOINERS else " " for c in text
    ).strip()
    fenced = _FENCE.fullmatch(without_thoughts(text))
    return tidied(fenced[1] if fenced else text)


def settable(decode: Mapping[str, DecodeSettings]) -> Mapping[str, DecodeSettings]:
    """UserError for a setting that the protocol has no word for."""
    for style, settings in decode.items():
        if style not in DECODE:
            raise UserError(f"no style {style!r} to decode", f"this captioner has {list(DECODE)}")
        usual = asdict(DECODE[style])
        for name, value in asdict(settings).items():
            if name not in _SETTABLE and value != usual[name]:
                raise UserError(
                    f"{name}={value} is not possible with a chat model", "leave it as it is"
                )
    return decode
