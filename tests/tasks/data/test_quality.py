"""tasks/data/quality.py: the doubts and the signature of every row, also of odd texts.

Tests tasks/data/minhash.py, tasks/data/quality_rules.py too.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from rensa import RMinHash

from tasks.data.minhash import SEED, VALUES
from tasks.data.quality import DOUBTS, scan_quality
from tasks.data.quality_rules import RULES
from tasks.data.scan import survey
from tasks.data.sources import Places

CONTROL, SIGNS, REPEATED, ECHO = (DOUBTS[rule] for rule in RULES)
CHARACTERS = (
    "abcdefgh  \n\t\r\x0b\x1c\x1d\x85\xa0\u2003\u3000\u2028\u201c\xe9\xdf\u0418\u0436\u0434\u4e2d\u4e00\u03c2"
    "\U0001f600\U0001d49c\x07\x7f\ufffd1234_'\"")
SPACES = [sign for sign in map(chr, range(sys.maxunicode + 1)) if sign.isspace()]


def scanned(
    folder: Path, texts: list[str], answers: list[str] | None = None, shared: int = 0,
) -> tuple[list[int], dict[int, list[int]]]:
    """DOUBTS of each row, and the signatures of the rows that have one."""
    rows = [{"text": text} for text in texts] if answers is None else [
        {"prompt": text, "completion": answer} for text, answer in zip(texts, answers, strict=True)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scan_quality([survey(file, Places("rows.jsonl"))], shared, 1, folder)
    values = np.fromfile(found.sketches.file, np.uint16).reshape(-1, VALUES).tolist()
    return found.doubts.tolist(), dict(zip(found.sketches.rows.tolist(), values, strict=True))


def drawn(seed: int) -> list[str]:
    """Texts of odd characters by chance."""
    draw = random.Random(seed)
    weights = [draw.random() ** 3 for _ in CHARACTERS]
    return [f"x{''.join(draw.choices(CHARACTERS, weights, k=draw.choice([0, 1, 30, 300, 2000])))}" for _ in range(60)]


@pytest.mark.parametrize("shared", [0, 2])
def test_a_signature_is_rensas_of_the_5_grams_after_the_shared_words(tmp_path: Path, shared: int) -> None:
    texts = [*drawn(1), "x " * 6 + "y" * 600 + " a b c d e f"]
    wanted = {}
    for row, text in enumerate(texts):
        words = text.lower().split()[shared:]
        if grams := [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]:
            [values] = RMinHash.digests_from_token_sets([grams], VALUES, SEED)
            wanted[row] = [value % (1 << 16) for value in values]
    assert scanned(tmp_path, texts, shared=shared)[1] == wanted
    assert 20 < len(wanted) < len(texts)


def test_doubts_and_signatures_stay_as_recorded(tmp_path: Path) -> None:
    """Others would drop other rows from data that was split before."""
    doubts, signatures = scanned(tmp_path, [text for seed in range(20) for text in drawn(seed)])
    found = hashlib.sha256(json.dumps([doubts, sorted(signatures.items())]).encode()).hexdigest()
    assert found == "6110b8e0cc43b163277f94ee7da0c5d773c03cab56e5c5ce25a019c5f5769f53"


def test_every_white_space_of_python_parts_words(tmp_path: Path) -> None:
    texts = [f"{space}one{space}{space}two{space}three{space}four{space}five six{space}" for space in SPACES]
    signatures = scanned(tmp_path, ["one two three four five six", *texts])[1]
    assert [signatures[row] for row in range(len(texts) + 1)] == [signatures[0]] * (len(texts) + 1)


def test_characters_that_look_like_white_space_part_no_words(tmp_path: Path) -> None:
    assert scanned(tmp_path, [f"a{sign}b c d e" for sign in "\u200b\ufeff\u2060\u180e"])[1] == {}


@pytest.mark.parametrize(("text", "doubts", "has_signature"), [
    ("a", 0, False), ("a b c d", 0, False), ("a b c d e", 0, True), ("f g h i j k", 0, True),
    ("x\u0436" * 256 + " b c d e f g", 0, True), ("\u0436" * 20 + " \u0436 \u0436 \u0436 \u0436", 0, True),
    ("z" * 99, 0, False), ("z" * 100, REPEATED, False), ("z" * 600 + " b c d e f g", REPEATED, True),
    ("la " * 50, REPEATED, True), ("1 2 3 4 5 six", SIGNS, True), ("\U0001f600", SIGNS, False),
    ("\U0001d49c \U00031349 \u4e2d \u1e9e \u03a3", 0, True),
    ("a \x1b b", CONTROL | SIGNS, False), ("\x7f", CONTROL | SIGNS, False), ("a\x85b", 0, False),
    ("a\x9fb", CONTROL, False)])
def test_the_shortest_the_longest_and_the_odd(tmp_path: Path, text: str, doubts: int, has_signature: bool) -> None:
    plain = "one two three four five six"
    found, signatures = scanned(tmp_path, [plain, text, plain])
    assert found == [0, doubts, 0] and (1 in signatures) is has_signature and signatures[0] == signatures[2]


@pytest.mark.parametrize(("prompt", "answer", "doubts"), [
    ("", "a", 0), (" \n", "a", 0), ("a", "aaaa", 0), ("Stra\xdfe", " STRASSE\n", ECHO),
    ("\ufb03\ufb03", "FFIffi", ECHO)])
def test_an_answer_that_is_the_prompt_in_another_case(tmp_path: Path, prompt: str, answer: str, doubts: int) -> None:
    assert scanned(tmp_path, [prompt], [answer])[0] == [doubts]


def test_every_letter_of_python_is_a_letter(tmp_path: Path) -> None:
    letters = [sign for sign in map(chr, range(sys.maxunicode + 1)) if sign.isalpha()][::97]
    assert set(scanned(tmp_path, letters)[0]) == {0}


@pytest.mark.parametrize(("prompt", "answer", "spaced"), [
    ("a", "b", 0), ("a\u3000", "b", 1), ("a", "\nb", 1), ("", "b", 0)])
def test_rows_that_keep_a_distance_are_counted(tmp_path: Path, prompt: str, answer: str, spaced: int) -> None:
    (tmp_path / "d").write_text(json.dumps({"prompt": prompt, "completion": answer}))
    assert scan_quality([survey(tmp_path / "d", Places("d"))], 0, 1, tmp_path).spaced == spaced
