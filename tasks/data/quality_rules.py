"""What makes a row doubtful, whatever its language: few rules, each one exact.

In:   the texts of a row     Out: the names of the rules that it meets
Nothing is refused by these; the data report counts them, and `drop=all` leaves such rows out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")
LETTER = re.compile(r"[^\W\d_]")
LETTER_WORDS = 0.8
REPEATED_GRAMS = 0.15
RUN_SIGNS = 100
RUN = re.compile(rf"(.)\1{{{RUN_SIGNS - 1}}}")


def has_control_characters(texts: list[str], words: list[str], grams: list[str]) -> bool:
    """A control character other than tab, line breaks and U+0085, or U+FFFD, which stands for damaged text."""
    return any(map(CONTROL.search, texts))


def is_mostly_signs(texts: list[str], words: list[str], grams: list[str]) -> bool:
    """Fewer than 80 % of the words have a letter (J. Rae et al., Gopher, 2021, appendix A1.1)."""
    if sum([word[0].isalpha() for word in words]) >= LETTER_WORDS * len(words):
        return False
    return sum(1 for word in words if LETTER.search(word)) < LETTER_WORDS * len(words)


def repeats_itself(texts: list[str], words: list[str], grams: list[str]) -> bool:
    """More than 15 % of the word 5-grams stood in the row before, or one sign stands 100 times in a row.

    After the rule on duplicate 5-grams of Rae et al. 2021, appendix A1.1, which counts their characters.
    """
    if len(grams) - len(set(grams)) > REPEATED_GRAMS * len(grams):
        return True
    return max(map(len, words), default=0) >= RUN_SIGNS and any(map(RUN.search, words))


def echoes(texts: list[str], words: list[str], grams: list[str]) -> bool:
    """The answer is what was asked, but for case and the space around it."""
    return len(texts) > 1 and texts[-1].strip().casefold() == texts[-2].strip().casefold()


RULES: dict[str, Callable[[list[str], list[str], list[str]], bool]] = {
    "control characters or U+FFFD": has_control_characters,
    "fewer than 80 % of the words with a letter": is_mostly_signs,
    "more than 15 % repeated 5-grams, or one sign 100 times": repeats_itself,
    "an answer that is the prompt": echoes,
}


def flags_of(texts: list[str], words: list[str], grams: list[str]) -> list[str]:
    """The rules that a row meets. `words` and `grams` are those of all its texts."""
    return [name for name, rule in RULES.items() if rule(texts, words, grams)]
