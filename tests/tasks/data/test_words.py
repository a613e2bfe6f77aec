"""tasks/data/words.py: the same words and 5-grams as one text after the other, and no text too few under suspicion."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from rensa import RMinHash

from tasks.data.minhash import grams_of, sketch_of
from tasks.data.quality import _sketches
from tasks.data.quality_rules import flags_of
from tasks.data.words import LAST_LETTER, LONGEST_GRAM, MOST_TEXTS, WIDE_SPACES, words_of

SIGNS = "abcdefgh  \n\t\r\x0b\x1c\x1d\x85\xa0\u2003\u3000\u2028\u201c\xe9\xdf\u0418\u0436\u0434\u4e2d\u4e00\u03c2" \
        "\U0001f600\U0001d49c\x07\x7f\ufffd1234_'\""


def check(texts: list[str]) -> None:
    """Compare with Python's own strings, and Rensa's own hashes."""
    found, at = words_of(texts), 0
    grams = [grams_of(text.split()) for text in texts]
    for number, hashes in enumerate(RMinHash.hash_token_sets(grams)):
        if found.too_long[number]:
            assert any(len(gram.encode()) > LONGEST_GRAM for gram in grams[number]) and found.suspects[number]
            continue
        assert found.grams[number] == len(grams[number])
        assert found.hashes[at : at + len(hashes)].tolist() == list(hashes)
        at += len(hashes)
        assert found.suspects[number] or not flags_of(
            [texts[number]], texts[number].split(), grams[number])
    assert at == len(found.hashes)


@pytest.mark.parametrize("seed", range(20))
def test_5_grams_and_suspects_are_those_of_strings(seed: int) -> None:
    draw = random.Random(seed)
    for texts in (1, 2, 50):
        weights = [draw.random() ** 3 for _ in SIGNS]
        check(["".join(draw.choices(SIGNS, weights, k=draw.choice([0, 1, 30, 300, 2000]))).lower()
               for _ in range(texts)])


@pytest.mark.parametrize("texts", [
    [""], ["", ""], ["a b c d"], ["a b c d e"], ["a b c d e", "", "f g h i j k"], ["x" * LONGEST_GRAM + " b c d e f g"],
    ["la " * 50, "one two three four five six"], ["1 2 3 4 5 six"], ["\u0436" * 20 + " \u0436 \u0436 \u0436 \u0436"],
    ["z" * 100], ["same words here and there"] * MOST_TEXTS])
def test_the_shortest_the_longest_and_the_repeated(texts: list[str]) -> None:
    check(texts)


@pytest.mark.parametrize("shared", [0, 2])
def test_signatures_are_those_of_the_strings(shared: int) -> None:
    draw = random.Random(1)
    texts = [" ".join(str(draw.randrange(50)) for _ in range(draw.randrange(40))) for _ in range(60)]
    texts[7] += " x" * 6 + "y" * LONGEST_GRAM
    has, values = _sketches(texts[:50], words_of(texts), shared)
    compared = [grams_of(text.split())[shared:] for text in texts[:50]]
    assert has.tolist() == [bool(one) for one in compared]
    assert values.tobytes() == b"".join(sketch_of(one) for one in compared if one)


def test_white_space_and_letters_are_those_of_python() -> None:
    wide = {(before + bytes([last])).decode() for before, lasts in WIDE_SPACES.items() for last in lasts}
    signs = list(map(chr, range(sys.maxunicode + 1)))
    assert wide == {sign for sign in signs[128:] if sign.isspace()}
    assert not any(sign.isalpha() for sign in signs[LAST_LETTER:])
    assert max(len(sign.casefold()) for sign in signs) == 3
    letters = [sign for sign in signs if sign.isalpha() and sign.islower()][:: 97]
    assert not np.any(words_of(letters).suspects)
