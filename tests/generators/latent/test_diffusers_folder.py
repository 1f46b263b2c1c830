"""Folders of diffusers' latent pipelines: theirs give their image here, ours give our image there, the rest is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel

from captioner.text_encoders import load_text_encoder
from generators.diffusion.samplers import Sampling
from generators.encoders import load_first_stage
from generators.first_stages import kl
from generators.latent import diffusers_folder, diffusers_scheduler, text
from generators.latent.config import Config
from generators.latent.model import LatentDiffusion, Text
from generators.latent.pipeline_text import embeds
from generators.latent.text import TextEncoder
from generators.noise import SampleNoise
from pipeline.errors import UserError
from tests.generators.latent import pipelines, small_latents
from tests.generators.latent.small_latents import ENCODER

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue squares on grass"]
SEEDS = (3, 4)


@lru_cache(1)
def first_stage() -> kl.Model:
    torch.manual_seed(0)
    size = {"channels": (8, 8, 16), "norm_groups": 4, "disc_width": 8, "disc_layers": 1}
    model = pipelines.stirred(kl.Model(kl.Config(image_size=16, **size)))
    model.scale.set(1.7)
    return model


def small(config: Config) -> LatentDiffusion:
    return pipelines.stirred(small_latents.denoising(config), 1)


def start(config: Config) -> torch.Tensor:
    side = config.latent_size
    return SampleNoise(SEEDS, CPU).normal(config.latent_channels, side, side)


def ours(
    model: LatentDiffusion,
    stage: kl.Model,
    encoder: TextEncoder,
    guidance: float,
    prompts: Sequence[str] = PROMPTS,
    sampling: Sampling | None = None,
) -> np.ndarray:
    """Images (B, H, W, 3) in [0, 1]."""
    latents = model.sample(
        text.encoded(prompts, encoder, CPU),
        SampleNoise(SEEDS, CPU),
        empty=text.empty(encoder, CPU),
        guidance=guidance,
        sampling=sampling,
    )
    images = stage.decode(stage.scale.unscaled(latents))
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stable Diffusion's layout, of both versions, as diffusers writes it."""
    root = tmp_path_factory.mktemp("sd")
    for version in ("1", "2"):
        pipelines.stable_diffusion(version).save_pretrained(root / version)
    return {version: root / version for version in ("1", "2")}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    texts = shutil.ignore_patterns("text_encoder", "tokenizer")
    return shutil.copytree(folders["1"], tmp_path / "copied", ignore=texts)


@pytest.mark.parametrize("version", ["1", "2"])
def test_stable_diffusions_layout_gives_the_image_of_diffusers(
    folders: dict[str, Path], version: str
) -> None:
    """Caption to image, with the folder's own words; the U-Net alone gives exactly the same."""
    found = diffusers_folder.load(folders[version])
    config = found.model.config
    wanted = ("epsilon", (4, 4)) if version == "1" else ("v_prediction", (2, 4))
    assert (config.prediction, config.heads) == wanted
    assert (config.schedule, config.linear_projection) == ("scaled_linear", version == "2")
    assert not any(value.requires_grad for value in found.model.parameters())
    peer = UNet2DConditionModel.from_pretrained(folders[version] / "unet").eval()
    noisy, states, t = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16), torch.tensor([7, 900])
    with torch.no_grad():
        expected = peer(noisy, t, states).sample
    seen = torch.ones(2, 12, dtype=torch.bool)
    assert torch.equal(found.model(noisy, t, Text(states, seen)), expected)

    encoder = load_text_encoder(str(folders[version]))
    pipe = pipelines.read(folders[version])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    how = {"num_inference_steps": 25, "guidance_scale": 3.0, "latents": start(config)}
    theirs = pipelines.drawn(pipe, prompt=PROMPTS, **how)
    assert theirs.std() > 0.1
    assert abs(ours(found.model, found.first_stage, encoder, 3.0) - theirs).max() <= 1e-4


def test_a_folders_text_is_what_its_pipeline_reads(folders: dict[str, Path]) -> None:
    """Pads are part of it, and what is too long is cut where the pipeline cuts it."""
    encoder, pipe = load_text_encoder(str(folders["1"])), pipelines.read(folders["1"])
    texts = ["", *PROMPTS, "a red circle " * 9]
    found = text.encoded(texts, encoder, CPU)
    expected, _ = pipe.encode_prompt(texts, CPU, 1, False)
    torch.testing.assert_close(found.states, expected)
    assert found.mask.all() and encoder.num_cut == 1
    with pytest.raises(UserError, match="it sees 12 tokens, not 13"):
        load_text_encoder(str(folders["1"]), length=13)


KINDS = {
    "epsilon": (small_latents.UNET, {"prediction": "epsilon"}),
    "v": (small_latents.UNET, {"linear_projection": True}),
    "cosine": (small_latents.UNET, {"schedule": "squaredcos_cap_v2", "timesteps": 200}),
    "dit": (small_latents.DIT, {}),
    "linear": (small_latents.DIT, {"schedule": "linear", "timesteps": 500}),
    "flow": (small_latents.FLOW, {"sampler": "dpm++", "steps": "9"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_our_model_gives_its_image_in_diffusers(tmp_path: Path, kind: str) -> None:
    """Of captions of other lengths, at once, with guidance and without; and it is loaded again."""
    base, changes = KINDS[kind]
    model = small(replace(base, **changes))
    diffusers_folder.save(model, first_stage(), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    pipe = pipelines.read(tmp_path, text_encoder=None, tokenizer=None)
    told = embeds(PROMPTS, ENCODER, pipe)
    how = {"num_inference_steps": int(model.config.steps), "latents": start(model.config)}
    for guidance in (1.0, 3.0):
        theirs = pipelines.drawn(pipe, guidance_scale=guidance, **told, **how)
        wanted = ours(model, first_stage(), ENCODER, guidance)
        assert theirs.std() > 0.05
        assert abs(theirs - wanted).max() <= 1e-4

    found = diffusers_folder.load(tmp_path)
    kept = {"sampler": found.model.config.sampler, "steps": found.model.config.steps}
    assert found.model.config == replace(model.config, **kept)
    before, after = model.state_dict(), found.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(found.first_stage.encode(pixels), first_stage().encode(pixels))
    assert found.first_stage.scale.factor == pytest.approx(1 / 1.7)


def test_ddim_is_the_first_order_solver_at_the_same_timesteps(tmp_path: Path) -> None:
    model = small(replace(small_latents.UNET, sampler="ddim"))
    diffusers_folder.save(model, first_stage(), tmp_path)
    pipe = pipelines.read(tmp_path, text_encoder=None, tokenizer=None)
    told = embeds(PROMPTS, ENCODER, pipe)
    how = {"timesteps": [999, 799, 599, 400, 200, 0], "latents": start(model.config)}
    theirs = pipelines.drawn(pipe, guidance_scale=2.0, **told, **how)
    wanted = ours(model, first_stage(), ENCODER, 2.0, sampling=Sampling("ddim", 6, clip=0.0))
    assert abs(theirs - wanted).max() <= 1e-4


def test_flow_at_other_numbers_of_steps_is_near(tmp_path: Path) -> None:
    """25 does not divide 999: levels of noise lie up to half a timestep apart."""
    model = small(replace(small_latents.FLOW, sampler="dpm++", steps="25"))
    diffusers_folder.save(model, first_stage(), tmp_path)
    pipe = pipelines.read(tmp_path, text_encoder=None, tokenizer=None)
    told = embeds(PROMPTS, ENCODER, pipe)
    how = {"num_inference_steps": 25, "latents": start(model.config)}
    theirs = pipelines.drawn(pipe, guidance_scale=2.0, **told, **how)
    assert abs(theirs - ours(model, first_stage(), ENCODER, 2.0)).mean() < 0.01 < theirs.std()


def test_a_published_transformer_gives_the_image_of_diffusers(tmp_path: Path) -> None:
    """Of PixArt-alpha's layout: by the name that its class had, and with a variance that nobody uses."""
    diffusers_folder.save(small(small_latents.DIT), first_stage(), tmp_path)
    kind = diffusers_folder._dit_class()
    settings = kind.load_config(tmp_path / "transformer")
    torch.manual_seed(0)
    peer = pipelines.stirred(kind.from_config(settings, out_channels=8))
    peer.save_pretrained(tmp_path / "transformer")
    former = {"_class_name": "Transformer2DModel", "num_vector_embeds": None}
    _edit(**former, only_cross_attention=False)(tmp_path / "transformer" / "config.json")

    found = diffusers_folder.load(tmp_path)
    again = tmp_path / "again"
    diffusers_folder.save(found.model, found.first_stage, again)
    wanted = ours(found.model, found.first_stage, ENCODER, 2.0)
    for folder in (tmp_path, again):
        pipe = pipelines.read(folder, text_encoder=None, tokenizer=None)
        how = {"num_inference_steps": 25, "latents": start(found.model.config)}
        theirs = pipelines.drawn(pipe, guidance_scale=2.0, **embeds(PROMPTS, ENCODER, pipe), **how)
        assert theirs.std() > 0.05
        assert abs(theirs - wanted).max() <= 1e-4


def test_a_process_of_few_timesteps_is_loaded(tmp_path: Path) -> None:
    """Of fewer than a model takes by default to draw."""
    model = small(replace(small_latents.FLOW, timesteps=20, steps="10"))
    diffusers_folder.save(model, first_stage(), tmp_path)
    assert diffusers_folder.load(tmp_path).model.config.process == model.config.process


def test_another_save_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    diffusers_folder.save(small(small_latents.UNET), first_stage(), tmp_path)
    diffusers_folder.save(small(small_latents.DIT), first_stage(), tmp_path)
    assert not (tmp_path / "unet").exists()
    assert diffusers_folder.load(tmp_path).model.config.denoiser == "dit"


def test_repeated_tokens_are_a_mask() -> None:
    """A U-Net that sees each token of a caption equally often says what it says of these alone."""
    model = small(small_latents.UNET)
    pipe = type("Pipe", (), {"unet": model.denoiser})
    told = text.encoded(PROMPTS, ENCODER, CPU)
    lengths = told.mask.sum(dim=1)
    assert lengths[0] != lengths[1] and not told.mask.all()
    found = embeds(PROMPTS, ENCODER, pipe)["prompt_embeds"]
    t, noisy = torch.tensor([5, 700]), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = model(noisy, t, told)
        torch.testing.assert_close(model.denoiser(noisy, t, found).sample, expected)
        plain = model.denoiser(noisy, t, told.states).sample
    assert (plain - expected).abs().max() > 1e-3
    many = ["word " * n for n in (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20)]
    with pytest.raises(UserError, match="one at a time"):
        embeds(many, ENCODER, pipe)


@pytest.mark.parametrize(
    ("model", "stage", "said"),
    [
        ({"timesteps": 5, "steps": "4"}, {}, "no schedule scaled_linear of 5"),
        ({}, {"norm_groups": 0}, "without normalisation"),
    ],
)
def test_what_diffusers_cannot_say_is_refused(
    tmp_path: Path, model: dict, stage: dict, said: str
) -> None:
    other = kl.Model(replace(first_stage().config, **stage))
    with pytest.raises(UserError, match=said):
        diffusers_folder.save(small(replace(small_latents.UNET, **model)), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_classes_in_the_index_are_not_believed(copied: Path) -> None:
    marker = copied / "ran"
    for place in (copied, copied / "unet"):
        (place / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    index = {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"], "vae": ["os", "system"]}
    (copied / "model_index.json").write_text(json.dumps(index))
    diffusers_folder.load(copied)
    assert not marker.exists()


def test_a_pipelines_first_stage_is_found(copied: Path) -> None:
    found, pixels = load_first_stage(copied), torch.rand(1, 3, 16, 16)
    expected = diffusers_folder.load(copied).first_stage.encode(pixels)
    assert torch.equal(found.encode(pixels), expected)
    assert diffusers_folder.is_pipeline(copied)
    assert not diffusers_folder.is_pipeline(copied / "vae")


def _edit(**changes: object) -> Callable[[Path], Any]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("unet/config.json", lambda path: path.unlink(), "unet cannot be read"),
        ("unet/config.json", lambda path: path.write_text("[" * 100_000), "unet"),
        ("unet/config.json", lambda path: path.write_bytes(b"1" * (1 << 21)), "longer than"),
        ("unet/config.json", _edit(layers_per_block=10**9), "layers|size"),
        ("unet/config.json", _edit(block_out_channels=[8192, 16384]), "bytes of safetensors"),
        ("unet/config.json", _edit(in_channels=9), "9 channels"),
        ("unet/config.json", _edit(out_channels=8), "has out_channels 8"),
        ("unet/config.json", _edit(class_embed_type="timestep"), "has class_embed_type"),
        ("unet/config.json", _edit(time_cond_proj_dim=8), "has time_cond_proj_dim 8"),
        ("unet/config.json", _edit(down_block_types=["Evil", "DownBlock2D"]), "unet"),
        ("unet/config.json", _edit(sample_size=[8, 8]), "unet cannot be read"),
        ("unet/config.json", _edit(_class_name="UNet2DModel"), "holds a UNet2DModel"),
        ("unet/config.json", _edit(_class_name="Many\nlines"), "holds a Many lines"),
        ("unet/config.json", _edit(act_fn="many\nlines"), "has act_fn many lines"),
        ("unet/config.json", _edit(quantization_config={"quant_method": "x"}), "unet"),
        ("vae/config.json", _edit(latent_channels=9), "vae"),
        ("vae/config.json", _edit(_class_name="AutoencoderTiny"), "holds a AutoencoderTiny"),
        (SCHEDULER, _edit(_class_name="Ev\nil"), "holds a Ev il"),
        (SCHEDULER, _edit(beta_end=0.02), "betas"),
        (SCHEDULER, _edit(beta_schedule="sigmoid"), "scheduler"),
        (SCHEDULER, _edit(trained_betas=[0.1] * 1000), "lists 1000"),
        (SCHEDULER, _edit(num_train_timesteps=10**9), "a size of"),
        (SCHEDULER, _edit(prediction_type="flow_prediction"), "prediction"),
        (WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:-100]), "unet cannot be read"),
        (WEIGHTS, lambda path: path.rename(path.with_suffix(".bin")), "safetensors"),
    ],
)
def test_damage_is_one_line(
    copied: Path, file: str, damage: Callable[[Path], Any], said: str
) -> None:
    damage(copied / file)
    with pytest.raises(UserError, match=said) as error:
        diffusers_folder.load(copied)
    assert "\n" not in error.value.message


def test_an_index_leads_to_no_pickles(copied: Path) -> None:
    """diffusers reads whatever an index of safetensors names."""
    from safetensors.torch import load_file

    weights = load_file(copied / WEIGHTS)
    torch.save(weights, copied / "unet" / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
    (copied / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"weights.bin, which is no safetensors"):
        diffusers_folder.load(copied)
    index["weight_map"] = dict.fromkeys(weights, Path(WEIGHTS).name)
    (copied / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    diffusers_folder.load(copied)


def test_strange_networks_are_not_built(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sizes that are possible one by one, and take all memory together."""
    from diffusers.models.unets import unet_2d_blocks

    built = []

    class Counted(unet_2d_blocks.Transformer2DModel):
        def __init__(self, *args: Any, **named: Any) -> None:
            built.append(named["num_layers"])
            super().__init__(*args, **named)

    monkeypatch.setattr(unet_2d_blocks, "Transformer2DModel", Counted)
    _edit(transformer_layers_per_block=9)(copied / "unet" / "config.json")
    with pytest.raises(UserError, match="has transformer_layers_per_block 9, ours has 1 only"):
        diffusers_folder.load(copied)
    assert set(built) == {1}  # ours


def test_tables_need_weights_beside_them(tmp_path: Path) -> None:
    """A transformer's table of places is in no file, and as large as its configuration says."""
    diffusers_folder.save(small(small_latents.DIT), first_stage(), tmp_path)
    _edit(sample_size=1 << 12)(tmp_path / "transformer" / "config.json")
    with pytest.raises(UserError, match="bytes of safetensors for 536,870,912 weights"):
        diffusers_folder.load(tmp_path)


def test_weights_that_are_missing_are_not_made_up(copied: Path) -> None:
    """diffusers itself draws them at random, and warns."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / WEIGHTS)
    del weights["conv_out.bias"]
    save_file(weights, copied / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: \['conv_out.bias'\]"):
        diffusers_folder.load(copied)


def test_every_noise_comes_back_from_its_scheduler(tmp_path: Path) -> None:
    from generators.diffusers_parts import Parts

    for base, changes in KINDS.values():
        config = replace(base, **changes)
        diffusers_scheduler.scheduler(config).save_pretrained(tmp_path / "scheduler")
        assert diffusers_scheduler.read(Parts(tmp_path)) == config.process
    shifted = replace(small_latents.FLOW, shift=3.0)
    diffusers_scheduler.scheduler(shifted).save_pretrained(tmp_path / "scheduler")
    assert diffusers_scheduler.read(Parts(tmp_path)) == shifted.process
