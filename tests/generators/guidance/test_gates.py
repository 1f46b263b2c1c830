"""The gates measure what they say: guides that are right, models that go where gradients point, and ones that do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from generators.diffusion.process import Process
from generators.diffusion.samplers import Gradient, Sampling
from generators.diffusion.schedule import Schedule
from generators.guidance import (
    classifier_gate,
    noised_clip_gate,
    semantic,
    semantic_quality,
    unguided,
)
from generators.guidance.classes import ClassNames
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.preset import Beside
from generators.unclip.glide_generator import Glide
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.scenes.claims import parse
from pipeline.scenes.render import render
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import COLOURS, Scene, Thing
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import OF_WORDS, decoder

SCENES = RenderedScenes("A16", "test", -1)
PROCESS = Process(Schedule())
GREY = 0.1  # what a follower has drawn when it asks where to go
CORNERS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)  # of a cube: 8 directions


class Corners(nn.Module):
    """A classifier whose gradient by any pixel is the corner of its class; it sees the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.names = PROCESS, ClassNames(COLOURS)
        self.corners = nn.Parameter(CORNERS, requires_grad=False)

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy.mean((2, 3)) @ self.corners.T

    def labels(self, names: list[str]) -> Tensor:
        return torch.tensor([self.names.number(name) for name in names])


class Projection(nn.Module):
    """A noised CLIP whose gradient by the first pixels is the target itself."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.process, self.width = PROCESS, width
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return noisy.flatten(1)[:, : self.width], self.scale

    def maps(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return (noisy,)


class Follower(nn.Module):
    """Draws, where a gradient points anywhere, what `read` finds in it, else always the same scene."""

    def __init__(self, read: Callable[[Tensor], Scene]) -> None:
        super().__init__()
        self.read_gradient, self.process = read, PROCESS
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def model(self) -> nn.Module:
        return self

    def read(self, texts: list[str]) -> list[str]:
        return texts

    def sample(self, embedding: None, text: list[str], noise: SampleNoise, **options) -> Tensor:
        assert set(text) == {""}
        gradient: Gradient = options["gradient"]
        x, t = torch.full((len(text), 3, 16, 16), GREY), torch.zeros(len(text), dtype=torch.long)
        images = [
            render("A16", self.read_gradient(row) if row.any() else plain("red"), 3, int(number))
            for number, row in zip(noise.uniform() * 1e6, gradient(x, t, x), strict=True)
        ]
        return torch.cat([to_model(image[None]) for image in images])


def plain(colour: str) -> Scene:
    return Scene("sand", (Thing("square", colour, "plain", "large", "centre"),))


def corner_of(gradient: Tensor) -> Scene:
    """The scene in the colour whose corner a gradient points to."""
    return plain(COLOURS[int((CORNERS @ gradient.sum((1, 2))).argmax())])


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(classifier_gate, "SEEN", 40)
    monkeypatch.setattr(classifier_gate, "DRAWN", 1)
    monkeypatch.setattr(noised_clip_gate, "AMONG", 12)
    monkeypatch.setattr(noised_clip_gate, "GROUPS", 2)
    monkeypatch.setattr(noised_clip_gate, "DRAWN", 12)
    monkeypatch.setattr(noised_clip_gate, "IMAGES", 12)


def test_a_model_that_goes_where_the_classifier_points_rises_to_1(few):
    beside = Beside(models={"glide:toy": Follower(corner_of)})
    figures = classifier_gate.measure(Corners(), SCENES, beside)
    assert figures["shown_0"] == 1 / 8  # always red
    assert figures["shown_1"] == figures["shown_4"] == 1
    assert figures["guidance_rise"] == 7 / 8
    assert figures.keys() >= classifier_gate.GATE.bars.keys()


def test_a_model_that_does_not_listen_does_not_rise(few):
    beside = Beside(models={"glide:toy": Follower(lambda gradient: plain("red"))})
    figures = classifier_gate.guided(Corners(), SCENES.level, beside)
    assert figures["shown_4"] == figures["shown_0"] == 1 / 8


def test_accuracies_are_of_the_classes_through_noise():
    class Reddest(Corners):
        def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
            red = noisy[:, 0].mean((1, 2)) - noisy[:, 2].mean((1, 2))
            return torch.stack([red, -red], dim=1)

    images = torch.zeros(150, 16, 16, 3, dtype=torch.uint8)
    labels = torch.arange(150) % 2
    images[labels == 0, ..., 0] = images[labels == 1, ..., 2] = 40
    found = classifier_gate.accuracies(Reddest(), images.numpy(), labels.numpy())
    assert found["accuracy_clean"] == found["accuracy_t0"] == 1
    assert 0.9 < found["accuracy_t500"] <= 1 and 0.4 < found["accuracy_t750"] <= 1
    assert found == classifier_gate.accuracies(Reddest(), images.numpy(), labels.numpy())
    wrong = classifier_gate.accuracies(Reddest(), images.numpy(), 1 - labels.numpy())
    assert wrong["accuracy_clean"] == 0


def test_distinct_scenes_are_distinct():
    places = noised_clip_gate.distinct(SCENES, 200)
    assert len({SCENES.scene(place.index) for place in places}) == 200
    assert len({place.index for place in places}) == 200


def test_a_model_that_goes_where_the_noised_clip_points_follows_captions(few):
    towers = LinearTowers()
    texts = SCENES.batch(noised_clip_gate.distinct(SCENES, 24)).texts
    targets = towers.encode_text(towers.tokenize(texts))[2]

    def read(gradient: Tensor) -> Scene:
        return parse(texts[int((targets @ gradient.flatten()[:16]).argmax())]).scene()

    beside = Beside(towers, {"glide:toy": Follower(read)})
    figures = noised_clip_gate.measure(Projection(), SCENES, beside)
    assert figures["attributes_0"] < 0.6
    assert figures["attributes_4"] == 1
    assert figures["guidance_rise"] == 1 - figures["attributes_0"]
    assert figures.keys() >= noised_clip_gate.GATE.bars.keys()


def shown_by(gradient: Tensor, images: Tensor) -> int:
    """Which image (N, 3, 16, 16) a gradient by grey pixels points to, by whichever guide it is of."""
    if not gradient.flatten()[16:].any():  # content: the projected pixels alone
        ways = images.flatten(1)[:, :16]
        return int(torch.cosine_similarity(ways, gradient.flatten()[None, :16]).argmax())
    colour = gradient.mean((1, 2))
    if (
        gradient - colour[:, None, None]
    ).abs().max() < 0.01 * colour.abs().max():  # style: none differ
        ways = (semantic.gram(images) - GREY**2).sum(2)
        return int(torch.cosine_similarity(ways, colour[None]).argmax())
    ways = (images - GREY).flatten(1)
    return int(torch.cosine_similarity(ways, gradient.flatten()[None]).argmax())


def test_a_model_that_goes_where_images_point_shows_them():
    places = noised_clip_gate.distinct(SCENES, 24)
    first, second = (SCENES.batch(places[run]) for run in (slice(0, 12), slice(12, 24)))
    images = torch.cat([to_model(first.images), to_model(second.images)])

    def read(gradient: Tensor) -> Scene:
        return SCENES.scene(places[shown_by(gradient, images)].index)

    def measured(reader: Callable[[Tensor], Scene]) -> dict[str, float]:
        return semantic_quality.measure(Projection(), Follower(reader), first, second, "A16")

    figures = measured(read)
    assert figures["unguided"] < 0.6
    assert figures["structure"] == 1
    assert figures["structure_rise"] == 1 - figures["unguided"]
    assert figures["style"] > 0.9 and figures["style_colours"] > 0.9 and figures["content"] > 0.9
    assert figures["mixture_turns"] >= 0
    deaf = measured(lambda gradient: plain("red"))
    assert deaf["structure_rise"] == deaf["style_rise"] == deaf["content_rise"] == 0
    assert deaf["mixture_turns"] == 0


def test_retrieval_is_perfect_where_embeddings_are_the_captions_own():
    towers, examples = LinearTowers(), SCENES.batch(noised_clip_gate.distinct(SCENES, 70))
    targets = towers.encode_text(towers.tokenize(examples.texts))[2]

    class Knows(Projection):
        shift = 0

        def forward(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            """By the one clean image that is nearest."""
            clean = to_model(examples.images)
            nearest = torch.cdist(noisy.flatten(1), clean.flatten(1)).argmin(1)
            return targets.roll(self.shift, 0)[nearest], self.scale

    model = Knows()
    figures = noised_clip_gate.retrieved(model, examples.images, examples.texts, towers)
    assert figures["r1_clean"] == figures["r1_t100"] == 1 > figures["r1_t750"]
    model.shift = 1
    figures = noised_clip_gate.retrieved(model, examples.images, examples.texts, towers)
    assert figures["r1_clean"] == 0


def test_unguided_samples_are_the_same_in_any_batch_and_of_one_schedule(monkeypatch):
    beside = Follower(corner_of)
    model = Corners()
    labels = torch.arange(10) % 8

    def gradient(run: slice) -> Gradient:
        return classifier_gate.classifier_gradient(model, labels[run])

    whole = unguided.draw(beside, model, 10, gradient)
    assert whole.shape == (10, 16, 16, 3) and (whole[0] != whole[8]).any()
    monkeypatch.setattr(unguided, "BATCH", 4)
    assert (unguided.draw(beside, model, 10, gradient) == whole).all()
    model.process = Process(Schedule("linear"))
    with pytest.raises(UserError, match="the guide knows the noise of linear"):
        unguided.draw(beside, model, 10, gradient)


def test_a_glide_is_led_through_the_caption_that_says_nothing():
    glide = Glide(decoder(OF_WORDS).requires_grad_(False))
    brightest, sampling = Corners(), Sampling("ddim", "4")
    brightest.process = glide.model.process
    labels = torch.tensor([0, 7])  # all channels down, all up

    def drawn(scale: float):
        def gradient(run: slice) -> Gradient:
            return classifier_gate.classifier_gradient(brightest, labels[run], scale)

        return unguided.draw(glide, brightest, 2, gradient, sampling).astype(float)

    alone, led = drawn(0), drawn(200)
    assert led[0].mean() < alone[0].mean() and led[1].mean() > alone[1].mean()
    plain = glide.model.sample(
        None,
        glide.model.read(["", ""]),
        SampleNoise([key64("unguided", i) for i in range(2)]),
        sampling=sampling,
    )
    assert (alone == to_images(plain)).all()
