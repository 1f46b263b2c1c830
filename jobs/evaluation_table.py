"""The table that evaluate-captions prints: a row per metric, a column per style."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captioner.metrics.style_sums import Figure

_GROUPS = {  # title -> metric -> label
    "captions": {"captions": "", "ok": "passed by the gate, %"},
    "against the {yardstick}": {
        "bleu_1": "BLEU-1",
        "bleu_2": "BLEU-2",
        "bleu_3": "BLEU-3",
        "bleu_4": "BLEU-4",
        "rouge_l": "ROUGE-L",
        "cider": "CIDEr-D",
    },
    "with a similarity to the image": {
        "clip_score": "CLIPScore",
        "clip_score_worst": "  of the worst chunk",
        "ref_clip_score": "RefCLIPScore",
    },
    "of rendered scenes": {
        "false_claims": "claims that are false, %",
        "captions_with_false_claims": "captions with a false claim, %",
        "main_is_right": "first thing is the main one and right, %",
        "truths_told": "truths told, %",
        "claims_f1": "F1 of claims",
    },
    "of images with listed objects": {
        "chair_i": "CHAIR_i: mentions that are false, %",
        "chair_s": "CHAIR_s: captions with a false mention, %",
        "objects_told": "objects told, %",
    },
    "variety": {
        "loops": "caught in a loop, %",
        "shared": "shared by several images, %",
        "type_token_ratio": "type-token ratio",
        "type_token_ratio_1000": "  in 1,000 words",
        "type_token_ratio_10000": "  in 10,000 words",
        "distinct_2": "distinct-2 (a)",
        "distinct_3": "distinct-3 (a)",
        "self_bleu": "self-BLEU (a)",
    },
    "manner": {
        "capitals": "begin with a capital letter, %",
        "lower_case": "have no capital letter, %",
        "upper_case": "have no small letter, %",
        "full_stops": "end with a full stop, %",
        "leading_spaces": "begin with white space, %",
        "openers": "begin with words about the picture, %",
        "words_mean": "words in the mean",
        "words_p05": "  5 % of the captions have at most",
        "words_median": "  half of them",
        "words_p95": "  95 % of them",
    },
    "drift in style from the {yardstick}, bits (b)": {
        "js_first_words": "of first words",
        "js_lengths": "of lengths",
        "js_words": "of words",
    },
    "drift in style from the original captions, bits (b)": {
        "js_first_words_from_originals": "of first words",
        "js_lengths_from_originals": "of lengths",
        "js_words_from_originals": "of words",
    },
}
_BEGINNINGS = 6


def lines(figures: "Sequence[Figure]") -> Iterator[str]:
    """The table with its notes, line by line. Beside a group stand the captions it rests on."""
    from captioner.metrics.diversity import SAMPLE
    from captioner.metrics.evaluation import ORIGINAL, REFERENCE

    styles = list(dict.fromkeys(figure.style for figure in figures))
    yardstick = f"{REFERENCE if REFERENCE in styles else ORIGINAL} captions"
    known = {(f.metric, f.style): f for f in figures if f.item is None}
    rows = [["", *styles]]
    for title, labels in _GROUPS.items():
        there = [metric for metric in labels if any((metric, style) in known for style in styles)]
        if there:
            heads = [known.get((there[0], style)) for style in styles]
            counts = (f"{head.count:,}" if head else "" for head in heads)
            rows.append([title.format(yardstick=yardstick), *counts])
        for metric in filter(labels.get, there):
            cells = [_cell(known.get((metric, style)), labels[metric]) for style in styles]
            rows.append([f"  {labels[metric]}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([label.ljust(widths[0]), *right]).rstrip()
    for style in styles:
        pairs = [f for f in figures if (f.metric, f.style) == ("first_pair", style)]
        shares = ", ".join(f"{f.item} {100 * f.value:.0f}%" for f in pairs[:_BEGINNINGS])
        yield f"{style} captions begin: {shares}"
    yield f"(a) of {SAMPLE:,} captions at most: it depends on how many there are"
    yield "(b) Jensen-Shannon, 0 to 1; of captions from themselves, that of one half from the other"


def _cell(figure: "Figure | None", label: str) -> str:
    if figure is None:
        return ""
    if label.endswith("%"):
        return f"{100 * figure.value:.1f}"
    return f"{figure.value:.{4 if figure.value < 10 else 1}f}".removesuffix(".0000").removesuffix(
        ".0"
    )
