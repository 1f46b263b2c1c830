"""Words: against the `tokenizers` library, nothing unknown, and dropout as its paper has it."""

import json
import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.dalle import bpe
from generators.dalle.bpe import Bpe
from pipeline.draws import Draws
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

TEXTS = RenderedScenes("A", "train", 0).texts(300)


@pytest.fixture(scope="module")
def words() -> Bpe:
    return bpe.train(TEXTS, 400)


def test_frequent_words_become_one_piece(words):
    ids = words.encode("A LARGE  red\tstar ")
    assert len(ids) == 4
    assert words.decode(ids) == "a large red star"
    assert words.encode("star") == ids[-1:]  # wherever it stands


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_nothing_is_unknown(words, text):
    ids = words.encode(text)
    assert all(0 <= i < words.size for i in ids)
    normal = words.tokenizer.normalizer.normalize_str(text)
    assert words.decode(ids) == normal.strip()
    dropped = words.encode_dropped(text, 0.5, Draws(0, text))
    assert words.decode(dropped) == normal.strip()


def test_training_is_deterministic(words):
    code = (
        "import sys, hashlib\n"
        "from generators.dalle import bpe\n"
        "from pipeline.scenes.rendered import RenderedScenes\n"
        "texts = RenderedScenes('A', 'train', 0).texts(300)\n"
        "print(hashlib.sha256(bpe.train(iter(texts), 400).to_json()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "", "RAYON_NUM_THREADS": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_size_is_kept_or_less(words):
    assert words.size == 400
    assert bpe.train(["ab ab"], 10_000).size < 300
    with pytest.raises(UserError, match="at least 256"):
        bpe.train(["ab"], 255)


def test_without_drops_the_merging_is_the_library_s(words, monkeypatch):
    """Our own loop, on every word, with a coin that never falls."""
    monkeypatch.setattr(bpe._Drops, "pass_over", lambda self, tosses: False)
    monkeypatch.setattr(bpe._Drops, "next", lambda self: False)
    odd = ["zebras, naïve; 1234 ab\U0001f600", "aaaa aaaaa", "the theatre's threat"]
    for text in [*TEXTS[:100], *odd]:
        assert words.encode_dropped(text, 0.1, Draws(0)) == words.encode(text)
        assert words.encode_dropped(text, 0.0, Draws(0)) == words.encode(text)


def literal(words: Bpe, word: str, dropout: float, draws: Draws) -> list[str]:
    """Algorithm 1 of 1910.13267 as it stands: a coin for every possible merge at every step."""
    pieces = list(word)
    while True:
        kept = [
            (words._ranks[pair], place)
            for place, pair in enumerate(pairwise(pieces))
            if pair in words._ranks and not draws.chance(dropout)
        ]
        if not kept:
            return pieces
        _, place = min(kept)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_has_the_paper_s_distribution(words, dropout):
    """Segmentations of one word: observed counts against those of the literal algorithm."""
    num = 4000
    ours = Counter(tuple(words.encode_dropped("circle", dropout, Draws(i))) for i in range(num))
    theirs = Counter(
        tuple(words._ids[p] for p in literal(words, "\u0120circle", dropout, Draws(i, "literal")))
        for i in range(num)
    )
    assert len(ours) > 5
    for pieces in ours | theirs:
        a, b = ours[pieces] / num, theirs[pieces] / num
        assert abs(a - b) < 4.5 * math.sqrt((a + b) / num) + 1e-3


class Counted(dict):
    """How often anything is looked up."""

    looked = 0

    def get(self, key, default=None):
        self.looked += 1
        return super().get(key, default)

    def __contains__(self, key):
        self.looked += 1
        return super().__contains__(key)


@pytest.mark.parametrize("text", ["ab" * 5000, "\u6f22\u5b57" * 5000])
def test_a_text_without_spaces_costs_no_more_than_its_length(text):
    words = bpe.train([text, *TEXTS], 400)
    words._ranks = Counted(words._ranks)
    ids = words.encode_dropped(text, 0.2, Draws(0))
    assert words.decode(ids) == text and ids != words.encode(text)
    assert words._ranks.looked < 6 * len(text.encode())
    assert words._whole.cache_info().currsize == 0  # many of these would fill the memory


def test_dropout_depends_on_its_draws_alone(words):
    text = TEXTS[0]
    once = [words.encode_dropped(text, 0.3, Draws(1, i)) for i in range(20)]
    other = Bpe(words.tokenizer)  # nothing remembered
    assert [other.encode_dropped(text, 0.3, Draws(1, i)) for i in range(20)] == once
    assert len(set(map(tuple, once))) > 10


def test_words_survive_their_file(words, tmp_path):
    words.save(tmp_path / "tokenizer.json")
    loaded = Bpe.load(tmp_path / "tokenizer.json")
    assert loaded.to_json() == words.to_json()
    assert loaded.encode(TEXTS[3]) == words.encode(TEXTS[3])


def change(record: dict, how: str) -> None:
    model = record["model"]
    if how == "dropout":
        model["dropout"] = 0.5
    elif how == "gap":
        model["vocab"]["hole"] = 5_000
    elif how == "no bytes":
        model["vocab"] = {"a": 0}
        model["merges"] = []
    else:
        record[how] = None


@pytest.mark.parametrize("how", ["dropout", "gap", "no bytes", "normalizer", "pre_tokenizer"])
def test_files_of_other_makers_are_refused(words, tmp_path, how):
    record = json.loads(words.to_json())
    change(record, how)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError):
        Bpe.load(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04garbage", b'{"model": 3}'])
def test_damaged_files_are_refused(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="no words"):
        Bpe.load(path)
    path.write_bytes(data)
    with pytest.raises(UserError, match="no words"):
        Bpe.load(path)


def test_hostile_texts_are_read(words):
    ids = words.encode("star " * 1_000_000)
    assert len(ids) == bpe.LONGEST_TEXT // 5
    half = json.loads('"a \\ud800 star"')
    assert words.decode(words.encode(half)) == "a ? star"
    assert words.decode(words.encode_dropped(half, 0.5, Draws(0))) == "a ? star"
    assert bpe.train([half], 300).size <= 300
