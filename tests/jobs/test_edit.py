"""What users do with a stack by the command line: sampling by way of a prior, and every kind of edit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline.scenes.rendered import RenderedScenes
from tests.support import unclip_folders

CLIP = ("--clip", unclip_folders.CLIP)
PROMPT = ("--prompt", "a red circle on grass")
MASK = np.zeros((16, 16), bool)
MASK[4:12, 5:11] = True
MADE = {"000.png", "001.png", "grid.png", "samples.jsonl"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Of models, and paths of pictures: first, second, large, mask."""
    root = tmp_path_factory.mktemp("stack")
    found = unclip_folders.write(root)
    scenes = RenderedScenes("A16")
    pictures = {
        "first": scenes.image(0),
        "second": scenes.image(1),
        "large": np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "mask": MASK.astype(np.uint8) * 255,
        "large_mask": (MASK.repeat(4, axis=0).repeat(4, axis=1) * 255).astype(np.uint8),
    }
    for name, pixels in pictures.items():
        found[name] = str(root / f"{name}.png")
        Image.fromarray(pixels).save(found[name])
    return found


def draw(verb: str, *arguments: object) -> int:
    return main([verb, *map(str, arguments), "--n", "2", "--threads", "1"])


def edit(folders: dict[str, str], kind: str, *arguments: object, model: str = "decoder") -> int:
    clip = () if model == "glide" else CLIP
    return draw("edit", "--edit", kind, "--ckpt", folders[model], *clip, *arguments)


def asked(folders: dict[str, str], kind: str) -> list[str]:
    """What a kind of edit needs, and few steps."""
    image = ["--image", folders["first"]]
    few = ["--steps", "3"]
    return {
        "variations": [*image, *few],
        "interpolate": [*image, "--to-image", folders["second"], *few],
        "text-diff": [*image, "--before", "a red circle", "--after", "a blue circle", *few],
        "inpaint": [*image, "--mask", folders["mask"], *PROMPT, "--prior", folders["prior"], *few],
        "compare": [*PROMPT, "--prior", folders["prior"], *few],
    }[kind]


def pictures(folder: Path) -> np.ndarray:
    """(N, H, W, 3) in the order of their numbers."""
    files = sorted(folder.glob("[0-9]*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["variations", "interpolate", "text-diff", "inpaint"])
def test_an_edit_writes_pictures_and_the_same_ones_again(kind, folders, tmp_path):
    for out in ("a", "b"):
        assert edit(folders, kind, *asked(folders, kind), "--out", tmp_path / out) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == MADE
    made = pictures(tmp_path / "a")
    assert made.shape == (2, 16, 16, 3) and not np.array_equal(made[0], made[1])
    lines = (tmp_path / "a/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [0, 1]


def test_seeds_steps_and_freedom_are_used(folders, tmp_path):
    drawn = []
    for i, more in enumerate(((), ("--seed", "1"), ("--steps", "4"), ("--eta", "0"))):
        given = [*asked(folders, "variations"), *more]
        assert edit(folders, "variations", *given, "--out", tmp_path / str(i)) == 0
        drawn.append(pictures(tmp_path / str(i)))
    assert all(not np.array_equal(drawn[0], other) for other in drawn[1:])
    assert np.array_equal(drawn[3][0], drawn[3][1])  # without fresh noise there is one way


@pytest.mark.parametrize("kind", ["variations", "inpaint", "compare"])
def test_models_of_ancestral_sampling_are_edited_as_well(kind, folders, tmp_path):
    """As Karlo's and the paper's are: DDIM's eta is none of their defaults."""
    given = asked(folders, kind)
    assert edit(folders, kind, *given, "--out", tmp_path, model="ancestral") == 0
    if kind == "variations":
        assert edit(folders, kind, *given, "--eta", 0.5, "--out", tmp_path, model="ancestral") == 0


def test_the_ends_of_an_interpolation_are_its_images(folders, tmp_path):
    assert (
        edit(folders, "interpolate", *asked(folders, "interpolate"), "--out", tmp_path / "w") == 0
    )
    for i, name in enumerate(("first", "second")):
        given = ("--image", folders[name], "--steps", 3, "--eta", 0, "--out", tmp_path / name)
        assert edit(folders, "variations", *given) == 0
        end = pictures(tmp_path / name)[0].astype(int)
        assert np.abs(pictures(tmp_path / "w")[i] - end).max() <= 1


def test_text_diffs_go_as_far_as_they_are_asked_to(folders, tmp_path):
    given = asked(folders, "text-diff")
    for out, more in (("own", ()), ("half", ("--strength", "0.5")), ("far", ("--strength", "1"))):
        assert edit(folders, "text-diff", *given, *more, "--out", tmp_path / out) == 0
    own, half, far = (pictures(tmp_path / out) for out in ("own", "half", "far"))
    assert np.abs(far[0].astype(int) - half[1]).max() <= 1  # half of the way to 1
    assert not np.array_equal(own[1], far[1])


@pytest.mark.parametrize("via", ["prior", "text", "caption"])
@pytest.mark.parametrize("model", ["decoder", "inpainting"])
def test_known_pixels_are_the_same_bits_in_the_files(model, via, folders, tmp_path):
    given = [*asked(folders, "inpaint"), "--via", via, "--guidance", "2"]
    assert edit(folders, "inpaint", *given, "--out", tmp_path, model=model) == 0
    made, image = pictures(tmp_path), np.asarray(Image.open(folders["first"]))
    assert (made[:, ~MASK] == image[~MASK]).all()
    assert (made[:, MASK] != image[MASK]).any(axis=-1).mean() > 0.5


def test_known_pixels_stay_in_what_upsamplers_draw(folders, tmp_path):
    given = ["--image", folders["large"], "--mask", folders["large_mask"], *PROMPT, "--steps", "3"]
    parts = ["--prior", folders["prior"], "--upsamplers", f"{folders['up32']}, {folders['up64']}"]
    assert edit(folders, "inpaint", *given, *parts, "--out", tmp_path) == 0
    made, known = pictures(tmp_path), np.asarray(Image.open(folders["large_mask"])) == 0
    assert made.shape == (2, 64, 64, 3)
    assert (made[:, known] == np.asarray(Image.open(folders["large"]))[known]).all()


def test_what_inpaints_also_draws_without_an_image(folders, tmp_path):
    model = ("--ckpt", folders["inpainting"], *CLIP, *PROMPT, "--via", "text", "--steps", "3")
    assert draw("sample", *model, "--out", tmp_path) == 0
    assert pictures(tmp_path).std() > 0
    given = asked(folders, "variations")
    assert edit(folders, "variations", *given, "--out", tmp_path, model="inpainting") == 0


def test_glide_inpaints_as_it_is_asked_to(folders, tmp_path):
    given = ["--image", folders["first"], "--mask", folders["mask"], *PROMPT]
    drawn = []
    for i, more in enumerate(
        (("--steps", 3), ("--steps", 4), ("--steps", 3, "--sampler", "ddpm"), ("--eta", 1))
    ):
        out = tmp_path / str(i)
        assert edit(folders, "inpaint", *given, *more, "--out", out, model="glide") == 0
        drawn.append(pictures(out))
        assert (drawn[-1][:, ~MASK] == np.asarray(Image.open(folders["first"]))[~MASK]).all()
    assert len({made.tobytes() for made in drawn}) == len(drawn)


def test_three_ways_to_a_caption_are_compared(folders, tmp_path, capsys):
    """A folder each, which holds what make sample draws that way."""
    given = asked(folders, "compare")
    assert edit(folders, "compare", *given, "--out", tmp_path / "c") == 0
    ways = ("prior", "text", "caption")
    assert {path.name for path in (tmp_path / "c").iterdir()} == set(ways)
    for via in ways:
        model = ("--ckpt", folders["decoder"], *CLIP, *given, "--via", via)
        assert draw("sample", *model, "--out", tmp_path / via) == 0
        assert contents(tmp_path / "c" / via) == contents(tmp_path / via)
    assert len({pictures(tmp_path / via).tobytes() for via in ways}) == 3
    assert edit(folders, "compare", *PROMPT, "--steps", 3, "--out", tmp_path / "d") == 0
    assert "none given" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"text", "caption"}


def test_a_whole_stack_draws_the_same_samples_whatever_n_is(folders, tmp_path):
    parts = ("--prior", folders["prior"], "--upsamplers", f"{folders['up32']},{folders['up64']}")
    model = ("sample", "--ckpt", folders["decoder"], *CLIP, *parts, *PROMPT, "--steps", "3")
    how = ("--guidance", "2", "--prior-guidance", "2", "--candidates", "3", "--threads", "1")
    for out, n in (("a", "2"), ("b", "3")):
        assert main([*model, *how, "--n", n, "--out", str(tmp_path / out)]) == 0
    few, more = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert few.shape == (2, 64, 64, 3)
    assert np.abs(few.astype(int) - more[:2]).max() <= 1  # other batches, other last bits
    assert not np.array_equal(few[0], few[1])


def test_every_way_and_setting_of_a_stack_is_used(folders, tmp_path):
    model = ("--ckpt", folders["decoder"], *CLIP, "--prior", folders["prior"], *PROMPT)
    drawn = []
    for i, more in enumerate(
        (
            (),
            ("--guidance", "3"),
            ("--prior-guidance", "3"),
            ("--candidates", "1"),
            ("--steps", "3"),
            ("--sampler", "ddpm"),
            ("--eta", "1"),
            ("--seed", "1"),
        )
    ):
        assert draw("sample", *model, *more, "--out", tmp_path / str(i)) == 0
        drawn.append(pictures(tmp_path / str(i)).tobytes())
    assert len(set(drawn)) == len(drawn)


def test_a_decoder_that_reads_by_itself_takes_its_towers(folders, tmp_path):
    model = ("--ckpt", folders["worded"], *CLIP, "--prior", folders["prior"], *PROMPT)
    assert draw("sample", *model, "--steps", "3", "--out", tmp_path) == 0
    given = asked(folders, "text-diff")
    assert edit(folders, "text-diff", *given, "--out", tmp_path, model="worded") == 0


WRONG = {
    "another towers": ("stranger", CLIP, "was trained with other towers"),
    "towers of another width": ("unknown", CLIP, "takes towers of embed_dim 16"),
    "no towers": ("decoder", (), "give CLIP="),
    "unknown towers": ("decoder", ("--clip", "nothing"), "CLIP=nothing is neither"),
    "no prior": ("decoder", CLIP, "give PRIOR="),
    "prior is none": ("decoder", (*CLIP, "--prior", "{glide}"), "PRIOR={glide} holds a glide"),
    "upsampler is none": ("decoder", (*CLIP, "--upsamplers", "{prior}"), "holds a prior"),
    "order": ("decoder", (*CLIP, "--upsamplers", "{up64},{up32}"), "in their order"),
    "one left out": ("decoder", (*CLIP, "--upsamplers", "{up64}"), "cannot follow images of 16"),
    "steps": ("decoder", (*CLIP, "--via", "text", "--steps", "0"), "STEPS=0"),
    "sampler": ("decoder", (*CLIP, "--sampler", "euler"), "SAMPLER=euler"),
    "eta": ("decoder", (*CLIP, "--sampler", "ddpm", "--eta", "1"), "is DDIM's"),
    "guidance": ("decoder", (*CLIP, "--guidance", "inf"), "--guidance inf"),
    "glide in a stack": ("glide", (*CLIP, "--via", "text"), "takes no CLIP and no VIA"),
    "tokens": ("decoder", (*CLIP, "--top-k", "5"), "takes no TOP_K"),
    "by itself": ("prior", (), "draws nothing by itself"),
    "no text": ("glide", ("--prompt", "a\udcff"), "PROMPT is no text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_fit_are_told_in_a_line(case, folders, tmp_path, capsys):
    model, arguments, message = WRONG[case]
    given = [part.format(**folders) for part in arguments]
    prompt = () if model == "prior" or "--prompt" in given else PROMPT
    asked = ("--ckpt", folders[model], *prompt, *given, "--out", tmp_path / "o")
    assert draw("sample", *asked) == 2
    told = capsys.readouterr().err
    assert message.format(**folders) in told and len(told.splitlines()) <= 2
    assert not contents(tmp_path)


MISTAKEN = {
    "no image": ("variations", ("--image", ""), "variations takes IMAGE, and none is given"),
    "no way": ("text-diff", ("--before", ""), "takes FROM (--before), and none is given"),
    "no mask": ("inpaint", ("--mask", ""), "inpaint takes MASK, and none is given"),
    "missing": ("variations", ("--image", "{first}/none.png"), "IMAGE={first}/none.png: Not a"),
    "missing mask": ("inpaint", ("--mask", "none.png"), "MASK=none.png: No such file"),
    "other end": ("interpolate", ("--to-image", "none.png"), "TO_IMAGE=none.png: No such"),
    "odd image": ("variations", ("--image", __file__), "is no image"),
    "odd URL": ("variations", ("--image", "odd://x"), "IMAGE=odd://x: Protocol not known"),
    "far": ("text-diff", ("--strength", "1.5"), "--strength 1.5 is not possible"),
    "steps": ("variations", ("--steps", "many"), "STEPS=many fits no schedule"),
    "way of captions": ("variations", ("--via", "text"), "variations takes no VIA"),
    "sampler": ("interpolate", ("--sampler", "ddpm", "--eta", "1"), "takes no ETA and no SAMPLER"),
    "one of three": ("compare", ("--via", "text"), "compare takes no VIA"),
    "not its own": ("compare", ("--mask", "{mask}"), "compare takes no MASK"),
    "no text": ("compare", ("--prompt", "a\udcff"), "PROMPT is no text"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_edits_that_cannot_be_are_told_in_a_line(case, folders, tmp_path, capsys):
    kind, arguments, message = MISTAKEN[case]
    given = [part.format(**folders) for part in arguments]
    assert edit(folders, kind, *asked(folders, kind), *given, "--out", tmp_path / "o") == 2
    told = capsys.readouterr().err
    assert message.format(**folders) in told and len(told.splitlines()) <= 2
    assert not contents(tmp_path)


def test_glide_and_priors_know_no_variations(folders, tmp_path, capsys):
    given = ("--image", folders["first"], "--out", tmp_path)
    for model in ("glide", "prior"):
        assert draw("edit", "--edit", "variations", "--ckpt", folders[model], *given) == 2
        assert f"is a {model}, which knows no variations" in capsys.readouterr().err


def test_a_list_of_something_else_is_not_replaced(folders, tmp_path, capsys):
    (tmp_path / "samples.jsonl").write_text("not ours\n")
    model = ("--ckpt", folders["glide"], *PROMPT, "--steps", "2", "--out", tmp_path)
    assert draw("sample", *model) == 2
    assert "give another OUT" in capsys.readouterr().err
    assert contents(tmp_path) == {"samples.jsonl": b"not ours\n"}


def test_a_damaged_part_is_told(folders, tmp_path, capsys):
    broken = shutil.copytree(folders["prior"], tmp_path / "prior")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    model = ("--ckpt", folders["decoder"], *CLIP, *PROMPT, "--prior", broken)
    assert draw("sample", *model, "--out", tmp_path / "o") == 2
    assert f"{broken} does not fit" in capsys.readouterr().err
