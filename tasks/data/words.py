"""The words and 5-grams of many texts at once: arrays over their bytes instead of a string for each.

In:   texts in lower case, without zero characters     Out: Words: hashes of all 5-grams, and which texts to look at
                                                            closely
Words are what `str.split` makes. The hash of a 5-gram is the one that Rensa 0.5.0 takes of the same string, so that
signatures do not depend on how they were made. Rules that few texts meet are decided in two steps: here a text is
suspected that may meet one, never too few; tasks/data/quality_rules.py decides. It takes a third of the time that
strings take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tasks.data.minhash import GRAM_WORDS
from tasks.data.quality_rules import LETTER_WORDS, REPEATED_GRAMS, RUN_SIGNS

WIDE_SPACES = {
    b"\xc2": b"\x85\xa0", b"\xe1\x9a": b"\x80", b"\xe2\x81": b"\x9f", b"\xe3\x80": b"\x80",
    b"\xe2\x80": b"\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\xa8\xa9\xaf"}
"""White space of `str.split` beyond ASCII in UTF-8: {the bytes before the last one: the last ones}"""
SPACE = 32
SPACES = bytes(SPACE if i == 0 or (i < 128 and chr(i).isspace()) else i for i in range(256))
"""What becomes a space; the zero byte ends a text."""
LETTERS = np.array([i < 128 and chr(i).isalpha() for i in range(256)])
LAST_LETTER = 0x33480
"""No assigned letter of Unicode 17 is beyond."""
MOST_TEXTS = 1 << 10
"""Texts of a batch: as many as the low bits of a gram's hash can number."""
LONGEST_GRAM = 1 << 9
"""In bytes. A text with a longer one is left to the caller."""

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
SEEDS = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344), np.uint64(0xA4093822299F31D0)
FACTOR, TURN = np.uint64(0xF1357AEA2E62A9C5), np.uint64(26)
"""Constants of rustc-hash 2.1 (lib.rs), which is Rensa's hash."""


@dataclass(frozen=True)
class Words:
    """Of a batch of texts."""

    hashes: Hashes
    """Of all 5-grams, text after text."""
    grams: Ints
    """How many 5-grams each text has; 0 also for one with a gram too long for this."""
    suspects: NDArray[np.bool_]
    """Texts that may have control characters, few letters or repetitions."""
    too_long: NDArray[np.bool_]
    """Texts with a 5-gram of more than LONGEST_GRAM bytes: they are not in `hashes`, but among the suspects."""


def words_of(texts: list[str]) -> Words:
    """At most MOST_TEXTS texts, whose lower-case content has no zero character."""
    raw = _encoded(texts)
    packed, counts = _packed(raw)
    ends = np.flatnonzero(packed == SPACE)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    of = np.repeat(np.arange(len(texts)), counts)
    lettered = np.bincount(of[_begins_with_letter(packed, starts)], minlength=len(texts))
    suspects = (lettered < LETTER_WORDS * counts) | _may_have_controls(raw)
    suspects[of[ends - starts >= RUN_SIGNS]] = True
    whole = of[: 1 - GRAM_WORDS] == of[GRAM_WORDS - 1 :]
    begins, owner = starts[: 1 - GRAM_WORDS][whole], of[: 1 - GRAM_WORDS][whole]
    lengths = ends[GRAM_WORDS - 1 :][whole] - begins
    too_long = np.zeros(len(texts), bool)
    too_long[owner[lengths > LONGEST_GRAM]] = True
    if too_long.any():
        fits = ~too_long[owner]
        begins, owner, lengths = begins[fits], owner[fits], lengths[fits]
    hashes, grams = hashes_of(packed, begins, lengths), np.bincount(owner, minlength=len(texts))
    suspects |= too_long | (_repeats(hashes, owner, len(texts)) > REPEATED_GRAMS * grams)
    return Words(hashes, grams, suspects, too_long)


def hashes_of(data: NDArray[np.uint8], begins: Ints, lengths: Ints) -> Hashes:
    """Rensa's hashes of byte strings of 8 bytes or more: rustc-hash 2.1, `hash_bytes` and `finish`."""
    at = np.ndarray(max(0, len(data) - 7), "<u8", data.data, strides=(1,))  # the eight bytes from each byte on
    ends = begins + lengths
    one, other = np.full(len(begins), SEEDS[0]), np.full(len(begins), SEEDS[1])
    more, offset = np.flatnonzero(lengths > 16), begins
    while len(more):
        place = offset[more]
        mixed = _folded(one[more] ^ at[place], at[place + 8] ^ SEEDS[2])
        one[more], other[more] = other[more], mixed
        offset = offset + 16
        more = more[offset[more] < ends[more] - 16]
    one ^= at[np.where(lengths > 16, ends - 16, begins)]
    other ^= at[ends - 8]
    product = (_folded(one, other) ^ lengths.astype(np.uint64)) * FACTOR
    return product << TURN | product >> np.uint64(64) - TURN


def _encoded(texts: list[str]) -> bytes:
    """All texts, each followed by a zero byte, with spaces for white space beyond ASCII."""
    raw = "\0".join([*texts, ""]).encode()
    if raw.isascii():
        return raw
    data = np.frombuffer(raw, np.uint8).copy()
    for before, last in WIDE_SPACES.items():
        if before in raw:
            size = len(before)
            alike = [data[i : len(data) - size + i] == before[i] for i in range(size)]
            begins = np.flatnonzero(np.logical_and.reduce(alike))
            found = begins[np.isin(data[begins + size], list(last))]
            for i in range(size + 1):
                data[found + i] = SPACE
    return data.tobytes()


def _packed(raw: bytes) -> tuple[NDArray[np.uint8], Ints]:
    """All words, each followed by one space; and how many there are in each text."""
    data = np.frombuffer(raw.translate(SPACES), np.uint8)
    space = data == SPACE
    behind = np.concatenate([[True], space[:-1]])
    counts = np.diff(np.searchsorted(np.flatnonzero(behind > space), np.flatnonzero(
        np.frombuffer(raw, np.uint8) == 0)), prepend=0)
    return data[~(space & behind)], counts


def _begins_with_letter(packed: NDArray[np.uint8], starts: Ints) -> NDArray[np.bool_]:
    """Whether the first character of a word is a letter (`str.isalpha`)."""
    first = packed[starts]
    found = LETTERS[first]
    wide = np.flatnonzero(first >= 0xC2)
    if len(wide):
        lead = first[wide].astype(np.int64)
        size = 1 + (lead >= 0xE0) + (lead >= 0xF0)  # bytes that follow
        code = lead & (0x3F >> size)
        for number in range(1, 4):
            follows = size >= number
            code[follows] = code[follows] << 6 | packed[starts[wide[follows]] + number] & 0x3F
        found[wide] = _letters()[np.minimum(code, LAST_LETTER)]
    return found


@cache
def _letters() -> NDArray[np.bool_]:
    return np.array([chr(code).isalpha() for code in range(LAST_LETTER)] + [False])


def _may_have_controls(raw: bytes) -> bool:
    """Whether anything in it may be a control character or U+FFFD."""
    data = np.frombuffer(raw, np.uint8)
    low = data < SPACE
    for usual in b"\0\t\n\r":
        low &= data != usual
    if low.any() or b"\x7f" in raw or b"\xef\xbf\xbd" in raw:
        return True
    return bool(((data[:-1] == 0xC2) & (data[1:] < 0xA0)).any())


def _repeats(hashes: Hashes, owner: Ints, texts: int) -> Ints:
    """How many 5-grams of each text stood in it before; a few more by chance, never fewer."""
    low = np.uint32(MOST_TEXTS - 1)
    keys = np.sort(hashes.astype(np.uint32) & ~low | owner.astype(np.uint32))
    again = keys[1:][keys[1:] == keys[:-1]] & low
    return np.bincount(again, minlength=texts)


def _folded(x: Hashes, y: Hashes) -> Hashes:
    """The two halves of the 128-bit products, xored."""
    x_low, x_high, y_low, y_high = x & LOW, x >> HALF, y & LOW, y >> HALF
    cross = x_high * y_low + (x_low * y_low >> HALF)  # below 2^64
    middle = (cross & LOW) + x_low * y_high
    folded: Hashes = x * y ^ (x_high * y_high + (cross >> HALF) + (middle >> HALF))
    return folded
