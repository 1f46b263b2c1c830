"""A chat model as a captioner: what it is shown and told, what becomes of its answers, in what order."""

import io
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from captioner import DecodeSettings, describe_captioner, load_captioner, load_checkpoint
from captioner.chat import Answer, Question
from captioner.chat_captioner import (
    DECODE,
    ChatCaptioner,
    ChatSettings,
    clean,
    make_caption,
    small_jpeg,
)
from captioner.coca import CocaCaptioner
from captioner.composed import ComposedCaptioner
from captioner.load import public_name
from captioner.prompts import Prompt, load_prompts
from captioner.stage import CaptionStage
from pipeline.errors import UserError
from pipeline.images import BadImage
from pipeline.samples import Sample
from tests.support import shards
from tests.support.chat_server import FAULTS, Asked, ChatServer


class Scripted:
    """A chat model that answers as it is told."""

    name = "openai:scripted"

    def __init__(self, answer) -> None:
        self.answer, self.asked, self.lock = answer, [], threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        with self.lock:
            self.asked += questions
        return [self.answer(question) for question in questions]

    def close(self) -> None: ...


def scripted(answer=lambda q: Answer("a dog", "stop"), **settings) -> ChatCaptioner:
    return ChatCaptioner(Scripted(answer), ChatSettings(**settings))


# --- what it is shown ---------------------------------------------------------------------------


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 48), (64, 48)), ((100, 100), (80, 80)), ((1000, 50), (80, 4)), ((37, 3000), (1, 80))],
)
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_shows_a_small_picture(size, shown, kind):
    image = opened(small_jpeg(getattr(shards, kind)("red", size), 80))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", shown)
    assert np.abs(np.asarray(image).mean(axis=(0, 1)) - (255, 0, 0)).max() < 8


def test_shows_it_upright_on_white_and_without_metadata():
    half = Image.new("RGB", (60, 40), "blue")
    half.paste("yellow", (0, 0, 30, 40))  # on the left, which orientation 6 turns up
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret"
    image = opened(small_jpeg(shards.encoded(half, "JPEG", exif=exif), 768))
    assert image.size == (40, 60) and b"secret" not in small_jpeg(
        shards.encoded(half, "JPEG", exif=exif), 768
    )
    top, bottom = np.asarray(image)[10, 20], np.asarray(image)[50, 20]
    assert top[2] < 60 and bottom[0] < 60
    clear = shards.encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG")
    assert np.asarray(opened(small_jpeg(clear, 768))).min() > 250
    for mode in ("L", "P", "CMYK"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        grey = shards.encoded(shards.picture("white", mode=mode), kind)
        assert opened(small_jpeg(grey, 768)).mode == "RGB"


def test_shows_no_bad_image():
    for data in (b"", b"no image", shards.jpeg()[:300]):
        with pytest.raises(BadImage):
            scripted().prepare(data)


# --- what it is told ----------------------------------------------------------------------------


def test_asks_each_style_by_its_prompt_with_system_and_image():
    captioner = scripted()
    captioner.caption([b"1", b"2"], ["a", "b"])
    *asked, bare = captioner.model.asked
    prompts = load_prompts()
    assert [(q.key, q.image, q.text) for q in asked] == [
        (key, image, prompts[style].user)
        for key, image in (("a", b"1"), ("b", b"2"))
        for style in ("short", "long")
    ]
    assert {q.system for q in asked} == {prompts["short"].system}
    assert bare.image is None and bare.text == prompts["short"].user
    assert captioner.caption([], []) == []
    (only,) = captioner.caption([b"1"], ["a"], ["long"])
    assert list(only) == ["long"]
    with pytest.raises(UserError, match="no 'haiku'"):
        captioner.caption([b"1"], ["a"], ["haiku"])


def test_decode_settings_reach_the_model_or_are_refused():
    model = Scripted(lambda q: Answer("a dog", "stop"))
    wanted = DecodeSettings(
        max_tokens=9, min_tokens=0, no_repeat_ngram=0, temperature=0.5, top_p=0.9, seed=4
    )
    ChatCaptioner(model, ChatSettings(), {"long": wanted}).caption([b"1"], ["a"])
    short, long = model.asked[:2]
    assert (long.max_tokens, long.temperature, long.top_p, long.seed) == (9, 0.5, 0.9, 4)
    assert short.max_tokens == DECODE["short"].max_tokens and short.temperature == 0
    for other in ({"top_k": 5}, {"min_tokens": 2}, {"no_repeat_ngram": 3}):
        with pytest.raises(UserError, match=f"{next(iter(other))}="):
            ChatCaptioner(model, ChatSettings(), {"long": DecodeSettings(**vars(wanted) | other)})
    with pytest.raises(UserError, match="no style 'haiku'"):
        ChatCaptioner(model, ChatSettings(), {"haiku": wanted})


def test_prompts_can_be_replaced(tmp_path):
    own = load_prompts()
    assert list(own) == ["short", "long"]
    for prompt in own.values():
        assert "this image shows" in prompt.user and prompt.system
    (tmp_path / "long.toml").write_text('user = "Say all."')
    assert load_prompts(str(tmp_path)) == {"short": own["short"], "long": Prompt("Say all.")}
    both = tmp_path / "elsewhere" / "both.toml"
    both.parent.mkdir()
    both.write_text('[short]\nuser = "One."\nsystem = " Be kind. "\n[long]\nuser = "All."')
    assert load_prompts(str(both)) == {"short": Prompt("One.", "Be kind."), "long": Prompt("All.")}
    identities = {p.identity for p in (*own.values(), *load_prompts(str(both)).values())}
    assert len(identities) == 4
    settings = ChatSettings(prompts=load_prompts(str(tmp_path)))
    info = describe_captioner("openai:m@http://host/v1", settings)
    assert info.prompts["long"] == Prompt("Say all.").identity and info.name == "openai:m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("user =", "no TOML"),
        ("", "holds no prompt"),
        ('[haiku]\nuser = "x"', "no style 'haiku'"),
        ('[long]\nsystem = "x"', "says nothing"),
        ('[long]\nuser = " "', "says nothing"),
        ("[long]\nuser = 5", "not made of texts"),
        ('[long]\nuser = "x"\nmodel = "y"', "not made of texts"),
        ('long = "x"', "not made of texts"),
        (b"\xff", "no TOML"),
        ("#" * 70_000, "more than"),
    ],
)
def test_prompts_that_are_none(tmp_path, text, message):
    path = tmp_path / "p.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_prompts(str(path))


# --- what becomes of its answers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a dog", "a dog"),
        ("  a\n\n dog\t.\r\n", "a dog ."),
        ('"A dog."', "A dog."),
        ("\u201cA dog.\u201d", "A dog."),
        ('"A" and "B"', '"A" and "B"'),
        ('a sign that says "stop"', 'a sign that says "stop"'),
        ("```\na dog\n```", "a dog"),
        ('```text\n"a\ndog"\n```', "a dog"),
        ("a\x00dog \x1b[31m\u202eevil", "a dog [31m evil"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("", ""),
        ("```", "```"),
        ("\n\ufeff", ""),
    ],
)  # fmt: skip
def test_cleans(text, cleaned):
    assert clean(text) == cleaned


def test_judges_what_can_be_judged():
    caption = make_caption(Answer(' "A dog\nruns." ', "stop", "", 300, 5))
    assert (caption.text, caption.num_tokens, caption.finish) == ("A dog runs.", 5, "stop")
    assert all(map(math.isnan, (caption.logprob, caption.similarity, caption.similarity_min)))
    statuses = [
        make_caption(answer).status
        for answer in (
            Answer("a dog", "stop"),
            Answer("a dog runs on the", "length"),
            Answer("a dog and " * 20, "stop"),
            Answer("\x00", "stop"),
            Answer("", "failed", "content_filter"),
        )
    ]
    assert statuses == ["ok", "truncated", "repetitive", "empty", "failed"]
    assert make_caption(Answer("a dog", "stop")).num_tokens is None


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("I'm sorry, but I can't help with identifying people.", "failed", "boilerplate"),
        ("As an AI language model, I cannot see images.", "failed", "boilerplate"),
        ("**Caption:** A cat", "failed", "markup"),
        ("- A cat\n- a dog", "failed", "markup"),
        ("Leave out the background, the mood: a cat", "failed", "leak"),
        ("<think>\nNo **cat**?\n</think>\n```\nA cat.\n```", "ok", ""),
        ("A sign that says I'm sorry on a door.", "ok", ""),
        ("\u72d7 on grass", "ok", ""),  # of other languages nothing is asked here
    ],
)
def test_answers_that_are_no_captions_are_failures_to_be_looked_at(text, status, reason):
    captioner = scripted(lambda q: Answer(text, "stop"))
    (said,) = captioner.caption([b"1"], ["a"], ["short"])
    assert (said["short"].status, said["short"].reason) == (status, reason)
    assert said["short"].text == clean(text) != ""


def test_a_row_says_why_a_caption_failed():
    answers = iter([Answer("", "failed", "status 400: no"), Answer("a dog", "stop")] * 2)
    stage = stage_of(scripted(lambda q: next(answers) if q.key else Answer("a", "stop")))
    rows = stage(iter(samples(2))).to_pylist()
    for row in rows:
        assert (row["short_status"], row["short_reason"]) == ("failed", "status 400: no")
        assert (row["long_status"], row["long_reason"]) == ("ok", None)
        assert (row["status"], row["reason"]) == ("ok", None)  # the sample is not dropped


HOSTILE = ["\ud800", "\x00\x01", "'; DROP TABLE captions; --", "\u202e" * 50, "\U0010ffff",
           "a" * 100_000, "<script>alert(1)</script>", '{"a": [1]}', "\n" * 1000]  # fmt: skip


def samples(num: int) -> list[Sample]:
    return [Sample(i, f"uid{i}", f"{i:04d}", shards.jpeg(i)) for i in range(num)]


def test_hostile_captions_become_rows():
    captioner = scripted(lambda q: Answer(HOSTILE[int(q.key[3:] or 0)], "stop"))
    stage = stage_of(captioner)
    rows = stage(iter(samples(len(HOSTILE)))).to_pylist()
    assert [row["uid"] for row in rows] == [f"uid{i}" for i in range(len(HOSTILE))]
    assert rows[2]["caption_long"] == HOSTILE[2]
    assert all("\n" not in row["caption_long"] for row in rows)


# --- whether it sees ----------------------------------------------------------------------------


def test_a_model_that_does_not_see_the_image_stops_the_job(tmp_path):
    with ChatServer(blind=True) as server:
        captioner = load_captioner(server.name, chat=ChatSettings(journal=str(tmp_path)))
        with pytest.raises(UserError, match="does not reach the model") as raised:
            captioner([shards.jpeg(1)])
        assert str(tmp_path) in raised.value.hint
        captioner.close()


@pytest.mark.parametrize("usage", [True, False])
def test_whether_it_sees_is_asked_once(tmp_path, usage):
    with ChatServer(usage=usage) as server:
        for first in (True, False):
            captioner = load_captioner(server.name, chat=ChatSettings(journal=str(tmp_path)))
            captioner([shards.jpeg(i) for i in range(40)], ["long"])
            captioner([shards.jpeg(i) for i in range(40)], ["long"])
            captioner.close()
            bare = [asked for asked in server.asked if asked.image is None]
            assert len(bare) == 1 and bare[0].prompt == load_prompts()["long"].user
            assert len(server.asked) == 41 and captioner.model.usage.asked == (41 if first else 0)


def test_whether_it_sees_is_asked_again_where_the_first_batch_failed():
    said = iter([Answer("", "failed", "no")] * 3 + [Answer("a", "stop", "", 5, 1)] * 3)
    captioner = scripted(lambda q: next(said))
    captioner.caption([b"1"], ["a"])
    with pytest.raises(UserError, match="5 tokens with an image and 5 without"):
        captioner.caption([b"1"], ["a"])


# --- in the stage -------------------------------------------------------------------------------


def stage_of(captioner, styles=("short", "long"), batch_size=4) -> CaptionStage:
    stage = CaptionStage("openai:m@http://nowhere/v1", styles, batch_size, 2)
    stage._loaded = captioner
    return stage


def test_rows_keep_their_order_whatever_is_answered_first():
    chance = np.random.default_rng(0)
    pauses = chance.uniform(0, 0.02, 100)

    def answer(question: Question) -> Answer:
        threading.Event().wait(pauses[int(question.key[3:] or 0)])
        return Answer(f"caption of {question.key} for {question.text[:8]}", "stop")

    captioner = scripted(answer)
    there = samples(100)
    there[7] = Sample(7, "uid7", "0007", b"no image")
    there[50] = Sample(50, "uid50", "0050", reason="truncated")
    rows = stage_of(captioner)(iter(there)).to_pylist()
    assert [row["uid"] for row in rows] == [f"uid{i}" for i in range(100)]
    for i, row in enumerate(rows):
        if i in (7, 50):
            assert row["status"] == "failed" and row["long_status"] == "failed"
            assert row["caption_long"] is None
        else:
            assert row["caption_long"] == f"caption of uid{i} for {load_prompts()['long'].user[:8]}"
            assert row["short_logprob"] is None and row["short_similarity"] is None
            assert row["short_tokens"] is None and row["short_finish"] == "stop"


def test_several_batches_are_in_flight_and_no_more_than_fit():
    """Nothing is answered for a while; then as much was read as may wait, and no more."""
    gate, seen, pulled = threading.Event(), threading.Semaphore(0), []

    def answer(question: Question) -> Answer:
        seen.release()
        gate.wait(20)
        return Answer("a dog", "stop")

    def reading():
        for sample in samples(400):
            pulled.append(sample.index)
            yield sample

    captioner = scripted(answer, in_flight=16)
    assert captioner.batches_in_flight == 2  # of 32, so sixteen of 4
    with ThreadPoolExecutor(1) as pool:
        table = pool.submit(stage_of(captioner, ("long",)), reading())
        for _ in range(16):
            assert seen.acquire(timeout=20)
        threading.Event().wait(0.5)
        assert 64 <= len(pulled) <= 2 * 64 + 3 * 4 + 8
        assert not seen.acquire(blocking=False)
        gate.set()
        assert table.result().num_rows == 400


def test_an_error_in_one_batch_ends_the_shard():
    def answer(question: Question) -> Answer:
        if question.key == "uid30":
            raise UserError("no server answers")
        return Answer("a dog", "stop")

    with pytest.raises(UserError, match="no server answers"):
        stage_of(scripted(answer))(iter(samples(100)))


def test_no_caption_is_lost_or_doubled_under_faults(tmp_path):
    chance = np.random.default_rng(1)
    fault = lambda n: str(chance.choice(FAULTS)) if chance.random() < 0.2 else ""  # noqa: E731
    with ChatServer(fault=fault) as server:
        settings = ChatSettings(journal=str(tmp_path), in_flight=16, deadline_sec=5)
        stage = CaptionStage(server.name, ("short", "long"), 8, 2, chat=settings)
        stage.setup()
        stage._loaded.model._ask.__self__._pause_sec = 0.01
        rows = stage(iter(samples(120))).to_pylist()
        stage._loaded.close()
        prompts = load_prompts()
        for i, row in enumerate(rows):
            image = small_jpeg(shards.jpeg(i), 768)
            for style, prompt in prompts.items():
                name = Asked(prompt.user, prompt.system, image, {}, "").name
                assert row[f"caption_{style}"] == f"a picture called {name} in front of a wall"
                assert row[f"{style}_status"] in ("ok", "repetitive")  # some names look like loops
        assert len(server.asked) > 260


def test_composed_with_coca_each_style_is_its_own(tiny):
    coca = CocaCaptioner("tiny", tiny, precision="fp32")
    both = ComposedCaptioner("both", {"short": coca, "long": scripted(in_flight=64)})
    assert both.batches_in_flight == 4 and coca.batches_in_flight == 1
    alone = stage_of(coca, ("short",))(iter(samples(14))).to_pylist()
    rows = stage_of(both)(iter(samples(14))).to_pylist()
    for one, row in zip(alone, rows, strict=True):
        short = [name for name in row if "short" in name]
        assert [row[name] for name in short] == [one[name] for name in short]
        assert row["caption_long"] == "a dog"


def test_a_composition_is_named_without_its_servers():
    name = "short=coca_tiny:random,long=openai:m@http://127.0.0.1:80/v1"
    assert public_name(name) == "short=coca_tiny:random,long=openai:m"
    info = describe_captioner(name)
    assert info.name == public_name(name) and list(info.prompts) == ["long"]
    same = "short=openai:m@http://h:1/v1,long=openai:m@http://h:2/v1"
    assert public_name(same) == "short=openai:m,long=openai:m"
    for wrong in ("openai:m@http://u:p@h/v1", "short=bundled,long=openai:m"):
        with pytest.raises(UserError):
            describe_captioner(wrong)
    with pytest.raises(UserError, match="has no checkpoint"):
        load_checkpoint("openai:m@http://127.0.0.1:80/v1")


def test_a_chat_model_alone_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom captioner.stage import CaptionStage\n"
        "stage = CaptionStage('openai:m@http://127.0.0.1:9/v1', ('long',), 4, 2)\n"
        "stage.setup()\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
