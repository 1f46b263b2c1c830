"""Content words: grammar is no content, and a word counts as kept however it is inflected or respelt."""

import pytest

from captioner.content import content_words, left_out


def test_grammar_names_nothing():
    assert content_words("This is the photo of a, and it was as if they had been there.") == []
    assert content_words("") == content_words("-- ... !") == []


def test_words_are_distinct_plain_and_in_order():
    text = "A red-haired woman's two Cats, cats & boxes on CAFÉ chairs; 3 dresses in a grey bus"
    wanted = "red haired woman 2 cat box cafe chair 3 dress gray bus"
    assert " ".join(content_words(text)) == wanted


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("dog", "three dogs"),
        ("cities", "a city"),
        ("sitting", "it sits"),
        ("run", "running water"),
        ("riding", "she rides"),
        ("men", "an old man"),
        ("two", "2 of them"),
        ("wooden", "made of wood"),
        ("triangle", "a triangular sign"),
        ("colours", "in every color"),
        ("Schönhausen", "SCHONHAUSEN"),
        ("parking", "pafrking metr"),
        ("eifel", "the Eiffel tower"),
        ("kid's", "the kids"),
    ],
)
def test_a_word_is_kept_in_another_form(word, text):
    assert left_out(content_words(word), text) == []


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("cat", "a car and a category"),
        ("horse", "a house"),
        ("dog", "a golden retriever"),
        ("green", "the greed of a greenhouse keeper"),
        ("car", "a cartoon"),
        ("red", "a ready bed"),
        ("ring", "a string that sings"),
        ("three", "two of 33"),
    ],
)
def test_another_word_does_not_stand_for_it(word, text):
    assert left_out(content_words(word), text) == content_words(word)
