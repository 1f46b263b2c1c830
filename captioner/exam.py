"""How right captions of rendered scenes are, measured on combinations that were never trained."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import simplejpeg

from captioner import bundle
from captioner.captioner import CocaCaptioner
from pipeline.scenes.captions import LONG, long_caption
from pipeline.scenes.claims import Score, main_is_right, parse, score
from pipeline.scenes.render import render
from pipeline.scenes.world import Scene, Split, draw_scene

JPEG_QUALITY = 90
SEED = 1_000_003  # scenes that no training draws
BATCH = 128


def scenes(split: Split, num_scenes: int) -> list[tuple[Scene, bytes]]:
    """Scenes that no training draws, and their images as JPEG; in `test`, held-out combinations."""
    level, found = bundle.LEVEL, []
    for index in range(num_scenes):
        scene = draw_scene(level, SEED, index, split)
        image = render(level, scene, SEED, index)
        found.append((scene, simplejpeg.encode_jpeg(image, JPEG_QUALITY)))
    return found


def examine(
    captioner: CocaCaptioner,
    scenes: Sequence[tuple[Scene, bytes]],
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Captions every image in both styles and compares each claim with the scene.

    Returns `long_f1` and `long_false` (attributes of all things; false claims as a share of claims),
    `short_main` (share whose main thing is right in all that is said), `short_false`, and the share
    of captions that the gate passes, per style.
    """
    total = {style: Score(0, 0, 0) for style in ("short", "long")}
    main, statuses = 0, Counter()
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        crops = [captioner.prepare(data) for _, data in part]
        written = captioner.caption(crops, [str(start + i) for i in range(len(crops))])
        for (scene, _), captions in zip(part, written, strict=True):
            for style, caption in captions.items():
                total[style] += score(parse(caption.text), scene)
                statuses[style, caption.status] += 1
            main += main_is_right(parse(captions["short"].text), scene)
            if parse(captions["long"].text).scene_or_none() != scene:
                report(f"{captions['long'].text}  <>  {long_caption(scene, 0)}")
    return {
        "long_f1": total["long"].f1,
        "long_false": total["long"].false_share,
        "short_main": main / len(scenes),
        "short_false": total["short"].false_share,
        "long_ok": statuses["long", "ok"] / len(scenes),
        "short_ok": statuses["short", "ok"] / len(scenes),
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
