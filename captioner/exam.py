"""How right captions of rendered scenes are, measured on combinations that were never trained."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import simplejpeg

from captioner import bundle
from captioner.coca import CocaCaptioner
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.claims import Score, main_is_right, parse, score
from pipeline.scenes.render import render
from pipeline.scenes.world import Scene, Split, draw_scene

JPEG_QUALITY = 90
SEED = -1  # trainings have seeds from 0 on
BATCH = 128


def scenes(split: Split, num_scenes: int) -> list[tuple[Scene, bytes]]:
    """Scenes that no training draws, and their images as JPEG; in `test`, held-out combinations."""
    level, found = bundle.LEVEL, []
    for index in range(num_scenes):
        scene = draw_scene(level, SEED, index, split)
        image = render(level, scene, SEED, index)
        found.append((scene, simplejpeg.encode_jpeg(image, JPEG_QUALITY)))
    return found


def examine(captioner: CocaCaptioner, scenes: Sequence[tuple[Scene, bytes]]) -> dict[str, float]:
    """Captions every image in both styles and compares each claim with the scene.

    Returns `long_f1` and `long_false` (attributes of all things; false claims as a share of claims),
    `short_main` (share whose main thing is right in all that is said), `short_false`, and the share
    of captions that the gate passes, `long_ok` and `short_ok`. `floor_*` are the same for the true
    captions of the next scene: attributes agree by chance, too.
    """
    total = {style: Score() for style in ("short", "long", "floor")}
    right = Counter()
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        crops = [captioner.prepare(data) for _, data in part]
        written = captioner.caption(crops, [str(start + i) for i in range(len(crops))])
        for i, ((scene, _), captions) in enumerate(zip(part, written, strict=True), start):
            other = scenes[(i + 1) % len(scenes)][0]
            for style, caption in captions.items():
                total[style] += score(parse(caption.text), scene)
                right[f"{style}_ok"] += caption.status == "ok"
            right["short_main"] += main_is_right(parse(captions["short"].text), scene)
            total["floor"] += score(parse(long_caption(other, i % len(LONG))), scene)
            other_short = short_caption(other, i % len(SHORT))
            right["floor_main"] += main_is_right(parse(other_short), scene)
    return {
        "long_f1": total["long"].f1,
        "long_false": total["long"].false_share,
        "short_false": total["short"].false_share,
        "floor_f1": total["floor"].f1,
        "floor_false": total["floor"].false_share,
        **{name: count / len(scenes) for name, count in sorted(right.items())},
    }


def recall_at_1(
    captioner: CocaCaptioner, scenes: Sequence[tuple[Scene, bytes]], among: int
) -> float:
    """How often a descriptive caption's own image is the most similar one among `among` images."""
    right = count = 0
    for part in _full_parts(scenes, among):
        images = np.concatenate(
            [
                captioner.encode_image([captioner.prepare(data) for _, data in part[i : i + BATCH]])
                for i in range(0, among, BATCH)
            ]
        )
        texts = captioner.encode_text(
            [long_caption(scene, i % len(LONG)) for i, (scene, _) in enumerate(part)]
        )
        right += int((np.argmax(texts @ images.T, axis=1) == np.arange(among)).sum())
        count += among
    return right / count


def _full_parts(
    scenes: Sequence[tuple[Scene, bytes]], size: int
) -> Iterator[Sequence[tuple[Scene, bytes]]]:
    for start in range(0, len(scenes) - size + 1, size):
        yield scenes[start : start + size]
