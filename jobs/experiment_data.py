"""The experiment's data, by the verbs that anybody would call: shards, captioner, captions, mixes, tokens."""

import json
from dataclasses import dataclass

from jobs.experiment_folders import CAPTIONS, TOKENS, Folders, mix_name, raw
from jobs.experiment_presets import BEST, BLENDS, TRUTH, ExperimentPreset
from jobs.experiment_rows import captions, truths

SEEDS = {"train": 0, "taught": 1, "held_out": 2}
"""Of the rendered scenes; no two sets share one."""
EXAMINED = 2000
"""Captions that are compared with the truth, which nothing but this looks at."""
_SHARD = 2000  # scenes
_THREADS = (
    1  # on a CPU the last bits of weights depend on it; such small models gain little by more
)


@dataclass(frozen=True)
class Data:
    """Each method is one step; run again, it does only what is missing."""

    preset: ExperimentPreset
    folders: Folders
    executor: str = "inline"

    def render(self, noise: float) -> None:
        """Raw shards with alt texts of this noise. Images are the same at every noise."""
        self._scenes(self.folders.data(noise), self.preset.scenes, "train", noise)

    def render_held_out(self) -> None:
        """Raw shards of combinations that are in no training set, with alt texts that fit."""
        self._scenes(self.folders.held_out, self.preset.prompts, "held_out", 0.0)

    def teach(self) -> None:
        """A few raw shards, and true captions of both styles for them, as people would write them."""
        from pipeline import storage
        from pipeline.draws import Draws
        from pipeline.scenes.captions import long_caption, short_caption

        self._scenes(self.folders.taught, self.preset.taught, "taught", 1.0)
        lines = []
        for row, scene in truths(self.folders.taught):
            draws = Draws(SEEDS["taught"], row["index"], "taught")
            written = {
                "sha256": row["sha256"],
                "caption_short": short_caption(scene, draws.choice(self.preset.short_manner)),
                "caption_long": long_caption(scene, draws.choice(self.preset.long_manner)),
            }
            lines.append(json.dumps(written) + "\n")
        storage.write_bytes(self._taught_captions, "".join(lines).encode())

    def pretrain_captioner(self) -> None:
        """The captioner's base, from nothing but images and their noisy alt texts."""
        from jobs import captioner_train
        from jobs.captioner_train import CaptionerTrain
        from pipeline import storage

        config = storage.join(self.folders.out, "captioner.json")
        storage.write_bytes(config, json.dumps(captioner_config(self.preset)).encode())
        captioner_train.run(
            CaptionerTrain(
                shards=raw(self.folders.data(self.preset.noises[0])),
                out=self.folders.captioner,
                style="base",
                init="scratch",
                model=config,
                contrastive=0.1,
                captioning=1.0,
                steps=self.preset.base_steps,
                context=_CONTEXT,
                **self._captioner,
            )
        )

    def tune_captioner(self, style: str) -> None:
        """One style, from the few captions that were written for it (section 2.1.1 of the paper)."""
        from jobs import captioner_train
        from jobs.captioner_train import CaptionerTrain

        captioner_train.run(
            CaptionerTrain(
                shards=raw(self.folders.taught),
                out=self.folders.captioner,
                style=style,
                captions=self._taught_captions,
                init=self.folders.captioner,
                image_tower="tuned",
                lr=2e-3,
                steps=self.preset.style_steps,
                **self._captioner,
            )
        )

    def recaption(self, folder: str) -> None:
        """Short and descriptive captions for the images of a data folder."""
        from jobs import caption
        from jobs.caption import Caption

        caption.run(
            Caption(
                shards=raw(folder),
                out=folder,
                captioner=self.folders.captioner,
                run=CAPTIONS,
                batch_size=256,
                threads=_THREADS,
                device=self.preset.device,
                executor=self.executor,
            )
        )

    def mix(self, noise: float, blend: str) -> None:
        """Training shards: the original captions alone, or all of them, to be blended when read."""
        from jobs import mix
        from jobs.mix import Mix

        mix.run(
            Mix(
                out=self.folders.data(noise),
                run=mix_name(blend),
                captions="" if blend == TRUTH else CAPTIONS,
                blend=BLENDS[blend],
                executor=self.executor,
            )
        )

    def train_first_stage(self) -> None:
        """What turns images into the tokens that all generators learn."""
        from pathlib import Path

        from jobs import generator_fit
        from pipeline.loading.loader import Loader

        preset = self.preset
        name, _, size = preset.first_stage.partition(":")
        pixels = self._pixels
        source = Loader(self.folders.mix(preset.noises[0], BEST), size=pixels, threads=1)
        with source:
            job = generator_fit.Job(
                name, size, source, Path(self.folders.first_stage), about=source.about
            )
            settings = generator_fit.settings_of(
                job, steps=preset.first_stage_steps, device=preset.device, evaluate_every=0
            )
            generator_fit.train(job, settings)

    def encode(self, noise: float, blend: str) -> None:
        """The tokens of a mix's images."""
        from jobs import encode
        from jobs.encode import Encode

        encode.run(
            Encode(
                shards=self.folders.mix(noise, blend),
                out=self.folders.data(noise),
                first_stage=self.folders.first_stage,
                run=f"{mix_name(blend)}-{TOKENS}",
                batch_size=256,
                threads=_THREADS,
                device=self.preset.device,
                executor=self.executor,
            )
        )

    def examine(self) -> dict[str, float]:
        """How true the captions are that generators learn from: F1 of claims and the share of false
        ones by style, and the share of captions that passed the captioner's own checks.
        """
        from pipeline.scenes.claims import Score, parse, score
        from pipeline.schemas import OK, STYLES

        folder = self.folders.data(self.preset.noises[0])
        scenes = {row["key"]: scene for row, scene in truths(folder, EXAMINED)}
        total: dict[str, Score] = {style: Score() for style in STYLES}
        passed = dict.fromkeys(STYLES, 0)
        for row in captions(folder, EXAMINED):
            for style in STYLES:
                said = parse(row[f"caption_{style}"] or "")
                total[style] += score(said, scenes[row["key"]])
                passed[style] += row[f"{style}_status"] == OK
        return {
            f"{style}_{name}": value
            for style in STYLES
            for name, value in {
                "f1": total[style].f1,
                "false": total[style].false_share,
                "ok": passed[style] / len(scenes),
            }.items()
        }

    @property
    def _captioner(self) -> dict:
        return {
            "crop": 1,
            "batch_size": 64,
            "preset": "small",
            "threads": _THREADS,
            "device": self.preset.device,
        }

    @property
    def _taught_captions(self) -> str:
        from pipeline import storage

        return storage.join(self.folders.taught, "captions.jsonl")

    @property
    def _pixels(self) -> int:
        from pipeline.scenes.world import LEVELS

        return LEVELS[self.preset.level].pixels

    def _scenes(self, out: str, num: int, which: str, noise: float) -> None:
        from jobs import scenes
        from jobs.scenes import Scenes

        scenes.run(
            Scenes(
                out=out,
                level=self.preset.level,
                n=num,
                seed=SEEDS[which],
                split="test" if which == "held_out" else "train",
                noise=noise,
                shard_size=_SHARD,
                executor=self.executor,
            )
        )


_CONTEXT = 48  # the longest descriptive caption of level B takes 45 tokens


def captioner_config(preset: ExperimentPreset) -> dict:
    """An open_clip configuration of a small CoCa for images of a level."""
    from pipeline.scenes.world import LEVELS

    width = preset.captioner_width
    stack = {"context_length": _CONTEXT, "vocab_size": 1, "width": width, "heads": width // 32}
    return {
        "embed_dim": width,
        "vision_cfg": {
            **{"image_size": LEVELS[preset.level].pixels, "patch_size": preset.captioner_patch},
            **{"width": width, "head_width": 32, "layers": 3, "pos_embed_type": "sin_cos_2d"},
            "stem_widths": [width // 2, width],
        },
        "text_cfg": {
            **{**stack, "layers": 2, "embed_cls": True, "output_tokens": True},
            "correct_cls_mask": True,
        },
        "multimodal_cfg": {**stack, "layers": 2},
    }
