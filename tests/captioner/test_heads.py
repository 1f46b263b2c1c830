"""Heads: the published ones give their known answers, every layout its own network's, others none."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captioner.heads import MAX_BYTES, load_head
from pipeline.errors import UserError
from tests.support.real import data

# What a plain torch.nn.Linear with the published weights says of the published embeddings of
# pictures rated 0, 1, ... 9.
B_32 = (-1.470, 0.273, 1.990, 3.611, 5.087, 6.393, 7.668, 8.915, 9.917, 11.006)
L_14_MLP = (1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747)
L_14 = (-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304)


class Keras(nn.Module):
    """LAION's NSFW detector for ViT-L-14 and ViT-B-32, as its converted weights name the parts."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.norm = nn.Module()
        self.norm.register_buffer("mean", torch.randn(widths[0]) * 0.02)
        self.norm.register_buffer("variance", torch.rand(widths[0]) * 0.002 + 1e-4)
        self.depth = len(widths)
        for i, (into, out) in enumerate(zip(widths, [*widths[1:], 1], strict=True), 1):
            setattr(self, f"linear_{i}", nn.Linear(into, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.norm.mean) / self.norm.variance.sqrt()
        for i in range(1, self.depth):
            x = torch.relu(getattr(self, f"linear_{i}")(x))
        return torch.sigmoid(getattr(self, f"linear_{self.depth}")(x))


class Layers(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def h14() -> Layers:
    parts: list[nn.Module] = []
    for into, out in ((1024, 1024), (1024, 2048), (2048, 1024), (1024, 256), (256, 128)):
        parts += [nn.Linear(into, out), nn.ReLU(), nn.Dropout(0.2)]
    return Layers(*parts, nn.Linear(128, 16), nn.Linear(16, 1))


def laion_mlp() -> Layers:
    return Layers(
        *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
    )


def unit(count: int, width: int) -> torch.Tensor:
    torch.manual_seed(5)
    return nn.functional.normalize(torch.randn(count, width), dim=1)


def saved(module: nn.Module, path: Path) -> str:
    torch.save(module.state_dict(), path)
    return str(path)


@pytest.mark.parametrize(("model", "known"), [("vit_b_32", B_32), ("vit_l_14", L_14)])
def test_linear_heads_give_the_known_scores(model: str, known: tuple[float, ...]):
    weights = data() / "weights"
    head = load_head(str(weights / f"sa_0_4_{model}_linear.pth"))
    files = [weights / "rating_embeddings" / model / f"rating{i}.npy" for i in range(10)]
    ratings = np.concatenate([np.load(file, allow_pickle=False) for file in files])
    scores = head(ratings)
    assert scores == pytest.approx(np.array(known), abs=1e-3)
    assert (np.diff(scores) > 1).all()
    assert np.corrcoef(scores, np.arange(10))[0, 1] > 0.99
    # LAION feeds embeddings of unit length: others are brought to it, and half precision is enough.
    assert head(ratings * 7) == pytest.approx(np.array(known), abs=1e-3)
    assert head(ratings.astype(np.float16)) == pytest.approx(np.array(known), abs=0.01)
    assert head.answer == "score"


def test_the_published_mlp_is_a_linear_chain():
    path = data() / "weights/sac+logos+ava1-l14-linearMSE.pth"
    module = laion_mlp()
    module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    head = load_head(str(path))
    x = unit(32, 768)
    with torch.inference_mode():
        assert head(x.numpy()) == pytest.approx(module.eval()(x)[:, 0].numpy(), abs=1e-3)
    assert head.name == "sac+logos+ava1-l14-linearMSE"
    folder = data() / "weights/rating_embeddings/vit_l_14"
    rated = [np.load(folder / f"rating{i}.npy", allow_pickle=False) for i in range(10)]
    assert head(np.concatenate(rated)) == pytest.approx(np.array(L_14_MLP), abs=1e-3)


def test_all_published_heads_load():
    files = sorted((data() / "weights").glob("*.pth"))
    assert [load_head(str(file)).width for file in files] == [512, 512, 768, 768]


@pytest.mark.parametrize(
    ("make", "width"),
    [(lambda: Keras(768, 64, 512, 256), 768), (lambda: Keras(512, 32, 32), 512), (h14, 1024)],
    ids=["keras-l14", "keras-b32", "h14"],
)
def test_nsfw_heads_are_their_networks(make: Callable[[], nn.Module], width: int, tmp_path: Path):
    torch.manual_seed(1)
    module = make()
    for linear in module.modules():  # spread, so that the activations matter and some leave 0..1
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=2 / linear.in_features**0.5)
    head = load_head(saved(module, tmp_path / "nsfw.pth"))
    x = unit(64, width)
    with torch.inference_mode():
        expected = module.eval()(x)[:, 0].clamp(0, 1).numpy()
    assert expected.std() > 0.01
    assert head(3 * x.numpy()) == pytest.approx(expected, abs=1e-4)
    assert head.answer == "probability"


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("output", ["score", "probability"])
def test_an_own_head_describes_itself(activation: str, output: str, tmp_path: Path):
    torch.manual_seed(2)
    one, two = nn.Linear(32, 16), nn.Linear(16, 1)
    mean, deviation = torch.randn(32) * 0.1, torch.rand(32) + 0.5
    tensors = {"0.weight": one.weight, "0.bias": one.bias, "1.weight": two.weight}
    tensors |= {"1.bias": two.bias, "mean": mean, "deviation": deviation}
    metadata = {"activation": activation, "output": output}
    save_file(
        {k: t.detach().clone() for k, t in tensors.items()}, tmp_path / "w.safetensors", metadata
    )
    head = load_head(str(tmp_path / "w.safetensors"))
    x = unit(16, 32)
    with torch.inference_mode():
        hidden = one((x - mean) / deviation)
        found = two(torch.relu(hidden) if activation == "relu" else hidden)[:, 0]
        expected = torch.sigmoid(found) if output == "probability" else found
    assert head(x.numpy()) == pytest.approx(expected.numpy(), abs=1e-5)
    assert head.answer == output


def test_heads_travel_to_workers_and_keep_their_weights_to_themselves(tmp_path: Path):
    head = load_head(saved(nn.Linear(8, 1), tmp_path / "h.pth"))
    x = unit(3, 8).numpy()
    assert (pickle.loads(pickle.dumps(head))(x) == head(x)).all()
    assert "array" not in repr(head)
    assert head.identity.startswith("sha256:")


def test_extreme_logits_are_probabilities(tmp_path: Path):
    tensors = {"0.weight": torch.tensor([[1e4, 0.0]]), "0.bias": torch.zeros(1)}
    metadata = {"activation": "none", "output": "probability"}
    save_file(tensors, tmp_path / "h.safetensors", metadata)
    head = load_head(str(tmp_path / "h.safetensors"))
    with np.errstate(all="raise", under="ignore"):
        assert head(np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [1.0, 0.0]


def unknown_layouts() -> dict[str, dict[str, torch.Tensor]]:
    relu = Layers(nn.Linear(768, 1024), nn.ReLU(), nn.Linear(1024, 1))
    two_numbers = nn.Linear(512, 2)
    nan = nn.Linear(512, 1)
    nn.init.constant_(nan.bias, float("nan"))
    broken = Keras(512, 32, 32).state_dict() | {"linear_2.weight": torch.zeros(32, 31)}
    return {
        "relu": relu.state_dict(),
        "two": two_numbers.state_dict(),
        "nan": nan.state_dict(),
        "broken": broken,
        "none": {},
    }


@pytest.mark.parametrize("which", ["relu", "two", "nan", "broken", "none"])
def test_unknown_layouts_are_refused_by_their_keys(which: str, tmp_path: Path):
    state = unknown_layouts()[which]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no layout that is known") as e:
        load_head(str(tmp_path / "x.pth"))
    assert "\n" not in str(e.value)
    assert next(iter(state), "no tensors") in str(e.value)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


def test_nothing_in_a_file_is_run(tmp_path: Path):
    torch.save({"weight": Evil(tmp_path / "ran"), "bias": torch.zeros(1)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_head(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def linear(**tensors: torch.Tensor) -> dict:
    return {"weight": torch.ones(1, 8), "bias": torch.zeros(1)} | tensors


def bomb(path: Path) -> None:
    """A torch file whose members are small only while they are packed."""
    torch.save(linear(), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/9", bytes(MAX_BYTES))


ODD = {
    "one_dimension": (linear(weight=torch.ones(8)), "no layout that is known: weight"),
    "number": (linear(weight=torch.tensor(1.0)), "no layout that is known"),
    "key": ({0: torch.ones(1, 8)}, "holds no state dict"),
    "lines": ({"we\night": torch.ones(1, 8)}, "no layout that is known: we ight"),
    "value": ({"weight": [1.0], "bias": torch.zeros(1)}, "holds no state dict"),
    "sparse": (linear(weight=torch.ones(1, 8).to_sparse()), "weight is not dense"),
    "meta": (linear(weight=torch.empty(1, 8, device="meta")), "weight is not dense"),
    "complex": (linear(weight=torch.ones(1, 8, dtype=torch.complex64)), "is of torch.complex64"),
    "integer": (linear(weight=torch.ones(1, 8, dtype=torch.int64)), "is of torch.int64"),
    "huge": (linear(weight=torch.ones(1, 1).expand(1, 2**31)), "a head has at most"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("which", ODD)
def test_odd_tensors_are_told_in_a_line(which: str, tmp_path: Path):
    state, says = ODD[which]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=says) as raised:
        load_head(str(tmp_path / "odd.pth"))
    assert "\n" not in raised.value.message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world",
        b"<html>",
        b"version https://git-lfs",
        b"\x80\x02]q\x00(K\x01",
        b"PK\x03\x04",
    ],
)
def test_bytes_that_are_no_checkpoint_are_told_in_a_line(content: bytes, tmp_path: Path):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a readable checkpoint") as raised:
            load_head(str(tmp_path / name))
        assert "\n" not in raised.value.message


def test_what_unpacks_to_more_than_a_head_is_told(tmp_path: Path):
    bomb(tmp_path / "bomb.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < MAX_BYTES / 100
    with pytest.raises(UserError, match="a head has at most"):
        load_head(str(tmp_path / "bomb.pth"))


def test_parameters_are_weights(tmp_path: Path):
    weight = torch.full((1, 8), 0.5, requires_grad=True)
    torch.save(linear(weight=weight, bias=nn.Parameter(torch.ones(1))), tmp_path / "h.pth")
    assert load_head(str(tmp_path / "h.pth"))(np.eye(1, 8)).tolist() == [1.5]


def test_files_that_are_no_heads_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"NSFW_HEAD=.*there is no such file"):
        load_head(str(tmp_path / "nothing.pth"), "NSFW_HEAD")
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"no checkpoint at all")
        with pytest.raises(UserError, match="not a readable checkpoint"):
            load_head(str(tmp_path / name))
    with (tmp_path / "big.pth").open("wb") as file:
        file.truncate(257 * 2**20)
    with pytest.raises(UserError, match="the head alone"):
        load_head(str(tmp_path / "big.pth"))


def test_a_head_of_another_width_is_told(tmp_path: Path):
    head = load_head(saved(nn.Linear(8, 1), tmp_path / "h.pth"))
    with pytest.raises(UserError, match="takes embeddings of 8 numbers, these have 9"):
        head(np.zeros((2, 9), np.float32))
