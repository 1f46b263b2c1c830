"""The tokeniser says what Stanford's says, on captions of every oddity, and never stalls."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.tokens import PUNCTUATION, tokenise

# Written down from Stanford's PTBTokenizer 3.4.1 with coco-caption's options and list of punctuation.
STANFORD = {
    "A black dog , running .": "a black dog running",
    "Two dogs, one cat; and: a bird!": "two dogs one cat and a bird",
    "Don't can't won't it's we're I'll I'd they've I'm": (
        "do n't ca n't wo n't it 's we 're i 'll i 'd they 've i 'm"
    ),
    "cannot gonna gotta wanna gimme lemme": "can not gon na got ta wan na gim me lem me",
    "the dogs' bones and James's car": "the dogs bones and james 's car",
    "O'Brien's rock": "o'brien 's rock",
    "“Smart quotes” it’s don’t": "smart quotes it 's do n't",  # noqa: RUF001
    "and/or he/she 1/2 3-1/2 50% $5.00": "and/or he/she 1/2 3-1/2 50 % $ 5.00",
    "Mr. Smith vs. Dr. No at 5 p.m. in the U.S. on St. Mark's St.": (
        "mr. smith vs. dr. no at 5 p.m. in the u.s. on st. mark 's st."
    ),
    "letter A. Then": "letter a then",
    "1,000 3.14 10:30 12/25/2010 2-3 10x20 1st 2nd": "1,000 3.14 10:30 12/25/2010 2-3 10x20 1st 2nd",
    "(brackets) [square]": "-lrb- brackets -rrb- -lsb- square -rsb-",
    "wait... no--yes a—b a - b ....... …": "wait no yes a b a b",
    "no. 5 on Jan. 5, etc.": "no. 5 on jan. 5 etc.",
    "http://example.com/a?b=c www.example.com foo@bar.com @user #tag": (
        "http://example.com/a?b=c www.example.com foo@bar.com @user #tag"
    ),
    "café naïve 日本語": "café naïve 日本語",
    "ma'am o'clock jack the '80s": "ma'am o'clock jack the '80s",
    "black-and-white t-shirt x-ray mid-20th-century": (
        "black-and-white t-shirt x-ray mid-20th-century"
    ),
    "3ft 2.5m .5 0.5": "3ft 2.5 m .5 0.5",
    "a, b ,c , d": "a b c d",
    "J.R.R. Tolkien J. Smith Jr.": "j.r.r. tolkien j. smith jr.",
    "what?! no!!": "what ?! no !!",
    "C5 & B2 * 4 = 8": "c5 & b2 * 4 = 8",
    "": "",
    " . ": "",
}


@pytest.mark.parametrize("caption", STANFORD)
def test_as_stanfords_tokeniser(caption):
    assert " ".join(tokenise(caption)) == STANFORD[caption]


def test_sentences_that_lack_a_space_are_taken_apart():
    """Stanford's keeps `sentence.next` as a name of the web; captions mean two words."""
    assert tokenise("end of sentence.Next one") == ["end", "of", "sentence", "next", "one"]


@given(st.text())
def test_any_text_has_words(text):
    words = tokenise(text)
    assert not any(not word or " " in word or word in PUNCTUATION for word in words)
    assert words == [word.lower() for word in words]


HOSTILE = (
    *("a.", "a", "1,", "a-", "a.b-", "<a ", "'", ".", "b. ", " ", "can", "a@", "1.1-", "n'", "_-"),
    *("1/", "@a", "www.", "<", "a.com/", "http://", "-", "#", "é", "n't"),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_64_kb_take_no_time(unit):
    start = time.process_time()
    tokenise(unit * ((1 << 16) // len(unit)) + "!")
    # Linear work takes a tenth of a second; anything worse, minutes.
    assert time.process_time() - start < 10
