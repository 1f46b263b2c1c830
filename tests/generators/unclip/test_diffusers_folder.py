"""Folders of UnCLIPPipeline: Karlo's layout loads and samples alike, ours runs in diffusers, the rest is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UnCLIPScheduler

from captioner.folder_towers import load_folder_towers
from generators.diffusion.respacing import timesteps
from generators.unclip import diffusers_folder
from generators.unclip.diffusers_folder import Stack
from generators.unclip.pipeline_text import text_parts
from generators.unclip.pixel_decoder import PixelDecoder
from generators.unclip.prior_network import Config as PriorConfig
from generators.unclip.prior_network import Prior
from generators.unclip.upsampler_network import Config as UpsamplerConfig
from generators.unclip.upsampler_network import Model as Upsampler
from pipeline.errors import UserError
from tests.generators.unclip import karlo
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import OF_TOWERS, OF_WORDS

UPSAMPLER = UpsamplerConfig(
    image_size=32,
    factor=2,
    crop=0.5,
    channels=8,
    multipliers=(1, 2),
    res_blocks=1,
    norm_groups=4,
    interpolation="bicubic",
    rounded=False,
)
DECODER = replace(OF_TOWERS, timesteps=1000)
PRIOR = PriorConfig(
    image_size=16, embed_dim=16, text_width=16, context=24, width=32, depth=2, heads=2
)


def stack(
    prior: PriorConfig = PRIOR,
    decoder: object = DECODER,
    upsampler: UpsamplerConfig = UPSAMPLER,
    last: bool = False,
) -> Stack:
    """Of ours, with weights drawn at random."""
    torch.manual_seed(1)
    models = [Prior(prior), PixelDecoder(decoder), Upsampler(upsampler)]
    models += [Upsampler(upsampler)] if last else []
    for model in models:
        model.eval().requires_grad_(False)
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    karlo.stir(models[0].transformer.named_parameters())
    for network in (models[1].decoder, *(model.unet for model in models[2:])):
        karlo.tame(network)
    return Stack(*models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Karlo's layout, as diffusers writes it."""
    path = tmp_path_factory.mktemp("karlo") / "folder"
    karlo.write(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    texts = shutil.ignore_patterns("text_encoder", "tokenizer")
    return shutil.copytree(folder, tmp_path / "copied", ignore=texts)


@pytest.mark.parametrize("number", [2, 7, 25, 64, 250, 999, 1000])
def test_timesteps_are_the_schedulers(number: int) -> None:
    scheduler = UnCLIPScheduler()
    scheduler.set_timesteps(number)
    assert timesteps(number, 1000) == scheduler.timesteps.tolist()


def test_karlos_layout_gives_the_image_of_diffusers(folder: Path) -> None:
    """Whole: caption to embedding to image to larger image, 25, 25 and 7 steps, two last networks.

    Of diffusers' own tables, in float32, it differs by less than eight bits show.
    """
    pipe = karlo.read(folder)
    towers = load_folder_towers(str(folder))
    found = karlo.ours(diffusers_folder.load(folder), towers, 4.0, 8.0)
    assert abs(found - karlo.theirs(pipe, 4.0, 8.0)).max() < 1 / 255
    wanted = karlo.theirs(karlo.exact(pipe), 4.0, 8.0)
    assert wanted.shape == (2, 32, 32, 3) and wanted.std() > 0.1
    assert abs(found - wanted).max() <= 1e-4


def test_what_a_folder_says_of_sampling_is_kept(folder: Path) -> None:
    found = diffusers_folder.load(folder)
    assert (found.prior_sampling.sampler, found.prior_sampling.clip) == ("ddpm", 5.0)
    assert not found.prior.config.unit_text
    assert found.last is not None
    assert (found.upsampler.config.factor, found.upsampler.config.steps) == (2, "7")
    assert not any(value.requires_grad for value in found.decoder.parameters())


@pytest.mark.parametrize(
    ("prior", "decoder", "prediction"), [(4.0, 8.0, "epsilon"), (1.0, 3.0, "sample")]
)
def test_our_stack_gives_its_image_in_diffusers(
    tmp_path: Path, prior: float, decoder: float, prediction: str
) -> None:
    changed = {"prediction": prediction}
    mine = stack(
        decoder=replace(DECODER, **changed),
        upsampler=replace(UPSAMPLER, **changed),
        last=prediction == "epsilon",
    )
    towers = LinearTowers()
    diffusers_folder.save(mine, tmp_path)
    pipe = karlo.exact(karlo.read(tmp_path, **text_parts(towers)))
    wanted = karlo.ours(mine, towers, prior, decoder, karlo.FEW)
    assert abs(karlo.theirs(pipe, prior, decoder, **karlo.few()) - wanted).max() <= 1e-4
    found = diffusers_folder.load(tmp_path)
    assert found.decoder.config.prediction == found.upsampler.config.prediction == prediction


def test_diffusers_alone_runs_a_folder_without_text(tmp_path: Path) -> None:
    """With an upsampler of learned variance."""
    mine = stack(upsampler=replace(UPSAMPLER, variance="learned_range"))
    towers = LinearTowers()
    diffusers_folder.save(mine, tmp_path)
    pipe = karlo.exact(karlo.read(tmp_path, text_encoder=None, tokenizer=None))
    text = karlo.condition(towers, karlo.PROMPTS)
    images = karlo.theirs(
        pipe,
        1.0,
        1.0,
        text_model_output=(text.pooled, text.states),
        text_attention_mask=text.mask,
        **karlo.few(),
    )
    assert abs(images - karlo.ours(mine, towers, 1.0, 1.0, karlo.FEW)).max() <= 1e-4
    assert diffusers_folder.load(tmp_path).upsampler.config.variance == "learned_range"


@pytest.mark.parametrize("last", [False, True])
def test_what_was_saved_is_loaded(tmp_path: Path, last: bool) -> None:
    mine = stack(last=last)
    diffusers_folder.save(mine, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    found = diffusers_folder.load(tmp_path)
    assert (found.last is None) == (not last)
    for name in ("prior", "decoder", "upsampler"):
        before, after = (getattr(s, name).state_dict() for s in (mine, found))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert found.prior_sampling.clip == mine.prior_sampling.clip == 0


def test_the_last_network_may_have_another_shape(tmp_path: Path) -> None:
    wide = stack(upsampler=replace(UPSAMPLER, channels=16)).upsampler
    diffusers_folder.save(replace(stack(), last=wide), tmp_path)
    assert diffusers_folder.load(tmp_path).last.config.channels == 16


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"decoder": OF_WORDS}, "words by a transformer of its own"),
        ({"decoder": replace(DECODER, inpaint=True)}, "inpainting"),
        ({"decoder": replace(DECODER, text_width=20)}, "texts 20 wide"),
        ({"decoder": replace(DECODER, embed_dim=20, text_width=20)}, "embeddings of 20"),
        ({"decoder": replace(DECODER, image_tokens=40)}, "64 tokens"),
        ({"decoder": replace(DECODER, schedule="linear")}, "DECODER has the schedule linear"),
        ({"prior": replace(PRIOR, schedule="linear")}, "PRIOR has the schedule linear"),
        ({"upsampler": replace(UPSAMPLER, interpolation="bilinear")}, "bilinear"),
        ({"upsampler": replace(UPSAMPLER, factor=4)}, "makes 32 pixels of 8"),
        ({"upsampler": replace(UPSAMPLER, variance="fixed_large")}, "fixed_large"),
        ({"decoder": replace(DECODER, prediction="v_prediction")}, "DECODER has the prediction v_"),
    ],
)
def test_what_the_pipeline_cannot_say_is_refused(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        diffusers_folder.save(stack(**changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_classes_in_the_index_are_not_believed(copied: Path) -> None:
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    (copied / "prior" / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    index = {
        "_class_name": ["evil", "Evil"],
        "prior": ["evil", "Evil"],
        "decoder": ["os", "system"],
    }
    (copied / "model_index.json").write_text(json.dumps(index))
    diffusers_folder.load(copied)
    assert not marker.exists()


def _edit(**changes: object) -> object:
    def edit(path: Path) -> None:
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | changes))

    return edit


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("prior/config.json", lambda path: path.unlink(), "prior cannot be read"),
        ("prior/config.json", lambda path: path.write_text("[" * 100_000), "prior"),
        ("prior/config.json", lambda path: path.write_text("[]"), "prior"),
        ("prior/config.json", lambda path: path.write_bytes(b"1" * (1 << 21)), "longer than"),
        ("prior/config.json", _edit(num_layers=10**9), "num_layers|size"),
        ("prior/config.json", _edit(embedding_dim=60_000), "bytes of safetensors"),
        ("prior/config.json", _edit(added_emb_type=None), "added_emb_type"),
        ("prior/config.json", _edit(_class_name="UNet2DModel"), "holds a UNet2DModel"),
        ("prior/config.json", _edit(num_layers="two"), "prior cannot be read"),
        ("decoder/config.json", _edit(act_fn="gelu"), "act_fn"),
        ("decoder/config.json", _edit(block_out_channels=[32, 65536]), "decoder"),
        ("decoder/config.json", _edit(in_channels=7), "in_channels"),
        ("decoder/config.json", _edit(layers_per_block=[3000, 3000]), "a size of 3000"),
        ("decoder/config.json", _edit(sample_size=12), "32 pixels of 12"),
        ("decoder/config.json", _edit(quantization_config={"quant_method": "x"}), "decoder"),
        ("text_proj/config.json", _edit(time_embed_dim=64), "time_embed_dim"),
        ("super_res_last/config.json", _edit(add_attention=True), "add_attention"),
        ("prior_scheduler/scheduler_config.json", _edit(beta_schedule="linear"), "prior_scheduler"),
        ("prior_scheduler/scheduler_config.json", _edit(prediction_type="epsilon"), "prediction"),
        ("prior_scheduler/scheduler_config.json", _edit(clip_sample_range=-1.0), "clips to -1"),
        ("decoder_scheduler/scheduler_config.json", _edit(clip_sample=False), "clips to nothing"),
        (
            "prior/diffusion_pytorch_model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "prior cannot be read",
        ),
        (
            "prior/diffusion_pytorch_model.safetensors",
            lambda path: path.rename(path.with_suffix(".bin")),
            "safetensors",
        ),
    ],
)
def test_damage_is_one_line_with_the_part(
    copied: Path, file: str, damage: object, said: str
) -> None:
    damage(copied / file)
    with pytest.raises(UserError, match=said) as error:
        diffusers_folder.load(copied)
    assert "\n" not in error.value.message
