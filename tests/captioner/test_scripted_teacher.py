"""The scripted teacher errs exactly as often as it is told to, and knows the truth otherwise."""

import hashlib
import io
import json
import math
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from captioner.captioner import load_captioner
from captioner.chat import Question, open_chat_model
from captioner.chat_captioner import small_jpeg
from captioner.prompts import load_prompts
from pipeline.scenes import claims
from pipeline.scenes.render import render
from pipeline.scenes.world import LEVELS, Scene, draw_scene
from tests.support.scripted_teacher import BLIND, Teacher, misseen, scripted_teacher, style_of
from tests.support.shards import png

SCENES = [draw_scene(LEVELS["B"], 7, i, "test" if i % 2 else "train") for i in range(500)]


def encoded(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render("B", SCENES[index], 7, index)).save(file, "PNG")
    return file.getvalue()


def checked(text: str, scene: Scene) -> tuple[int, int]:
    """(claims about attributes, false ones): all but numbers and relations, which it never errs on."""
    said = claims.parse(text)
    said.relations = []
    score = claims.score(said, scene)
    return score.claimed - len(said.mentions), score.claimed - score.true


@pytest.mark.parametrize("error", [0.0, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("style", ["short", "long"])
def test_the_share_of_false_claims_is_the_rate(error, style):
    teacher = Teacher(error)
    made = wrong = 0
    for number, scene in enumerate(SCENES):
        claimed, false = checked(teacher.tell(scene, style, str(number)), scene)
        made, wrong = made + claimed, wrong + false
    assert made > 1200
    assert abs(wrong - error * made) <= 3.5 * math.sqrt(error * (1 - error) * made)


def test_every_attribute_errs_at_the_rate():
    error, wrong = 0.2, Counter()
    for number, scene in enumerate(SCENES):
        background, things = misseen(scene, error, 0, str(number))
        wrong["background"] += background != scene.background
        for told, true in zip(things, scene.things, strict=True):
            for what in ("shape", "colour", "texture", "size", "position"):
                wrong[what] += getattr(told, what) != getattr(true, what)
        assert len({thing.position for thing in things}) == len(things)
        assert len({thing.kind for thing in things}) == len(things)
    total = sum(len(scene.things) for scene in SCENES)
    for what, count in wrong.items():
        made = len(SCENES) if what == "background" else total
        assert abs(count - error * made) <= 3.5 * math.sqrt(error * (1 - error) * made), what


def test_what_it_says_depends_on_the_image_and_seed_alone():
    teacher, again, other = Teacher(0.3), Teacher(0.3), Teacher(0.3, seed=1)
    said, twice, differently = (
        [t.tell(scene, "long", str(i)) for i, scene in enumerate(SCENES[:50])]
        for t in (teacher, again, other)
    )
    assert said == twice != differently
    assert teacher.tell(SCENES[0], "long", "another image of it") != said[0]
    short = claims.parse(teacher.tell(SCENES[3], "short", "3"))
    long = claims.parse(said[3])
    assert short.mentions[0].shape in {m.shape for m in long.mentions}  # one eye for both styles


def test_styles_are_told_by_the_package_s_prompts():
    assert {style: style_of(p.user) for style, p in load_prompts().items()} == {
        "short": "short",
        "long": "long",
    }


def test_a_captioner_behind_http_gets_true_captions_of_both_styles():
    """Through the client, its JPEG and the oracle: what is told is what was rendered."""
    with scripted_teacher() as (server, teacher):
        captioner = load_captioner(server.name)
        images = [encoded(index) for index in range(12)]
        written = captioner(images)
        captioner.close()
    for captions, scene in zip(written, SCENES, strict=False):
        assert captions["short"].status == captions["long"].status == "ok"
        assert claims.parse(captions["long"].text).scene() == scene
        assert claims.main_is_right(claims.parse(captions["short"].text), scene)
    assert teacher.requests["long"] == 12
    assert teacher.requests["short"] in (12, 13)  # one more without an image, as a probe
    assert len(server.asked) == teacher.requests.total()


def test_it_sees_resized_scenes_and_admits_that_it_sees_none():
    teacher = Teacher()
    with Image.open(io.BytesIO(encoded(0))) as image:
        large = io.BytesIO()
        image.resize((256, 256), Image.Resampling.NEAREST).save(large, "PNG")
    assert teacher.see(small_jpeg(large.getvalue(), 768)) == SCENES[0]
    assert teacher.see(png(3)) is None
    prompt = load_prompts()["long"].user
    with scripted_teacher() as (server, _):
        model = open_chat_model(server.name)
        answers = model.ask([Question("0", prompt, image=png(3)), Question("1", prompt)])
        model.close()
    assert {answer.text for answer in answers} == {BLIND}


def test_in_a_process_of_its_own_it_counts_what_it_was_asked():
    command = [sys.executable, "-m", "tests.support.scripted_teacher", "--error", "0.5"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        url = process.stdout.readline().strip()
        model = open_chat_model(f"openai:any@{url}")
        image, prompts = encoded(1), load_prompts()
        questions = [Question(s, p.user, image=image) for s, p in prompts.items()]
        answers = dict(zip(prompts, model.ask(questions), strict=True))
        model.close()
        counts, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert json.loads(counts) == {"short": 1, "long": 1}
    name = hashlib.sha256(image).hexdigest()
    assert answers["long"].text == Teacher(0.5).tell(SCENES[1], "long", name)
    assert answers["short"].finish == "stop"
