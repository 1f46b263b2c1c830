"""A small autoregressive prior over linear towers, its task, and what it is asked."""

from functools import cache

import torch

from generators.preset import Materials, Prepared
from generators.towers import TextCondition
from generators.unclip.conditions import encoded
from generators.unclip.prior_ar import Config, Task, prepare
from generators.unclip.prior_ar_transformer import Prior
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

CONFIG = Config(
    image_size=16,
    embed_dim=16,
    text_width=16,
    context=24,
    components=12,
    buckets=16,
    dot_buckets=8,
    width=32,
    depth=2,
    heads=2,
)
SCENES = RenderedScenes("A16", "train", 0, size=1200)
HELD_OUT = RenderedScenes("A16", "test", -1).first(20)


@cache
def prepared() -> Prepared:
    """Its statistics."""
    return prepare(CONFIG, Materials(SCENES, towers=LinearTowers()))


def task_of(of: Prepared, source=SCENES, **options) -> Task:
    """Over held-out scenes; its weights are always the same ones."""
    torch.manual_seed(0)
    options = {"held_out": HELD_OUT} | dict(of.task) | options
    return Task(Prior(of.config), source, **options)


def sure(model: Prior) -> Prior:
    """With a head as a trained model has it: some buckets are far likelier than others."""
    model.eval().requires_grad_(False)
    model.head.weight.mul_(40)
    return model


def texts(num: int) -> TextCondition:
    return encoded(list(SCENES.texts(num)), LinearTowers(), "cpu")


def inputs(config: Config, num: int = 2) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(1)
    text = texts(num)
    dots = torch.randint(config.dot_buckets, (num,), generator=draws)
    ids = torch.randint(config.buckets, (num, config.components), generator=draws)
    return text.states, text.mask, text.pooled, dots, ids


def places(num: int, step: int = 0) -> list[Place]:
    return SCENES.places(step, seed=0, batch_size=num)
