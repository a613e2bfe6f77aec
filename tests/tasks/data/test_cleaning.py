"""tasks/data/cleaning.py and its rules: copies, near copies, leaks and doubtful rows are found and dropped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import DataError, Transient
from infra.process import spawn
from infra.records import Dataset, Finding, Split
from infra.settings import Settings
from infra.spec import Drop
from infra.storage.store import Store
from tasks.data import jsonl, minhash, quality, scan
from tasks.data.cleaning import COPY, HELD_OUT_NEAR, LEAK, NEAR, NEAR_LEAK
from tasks.data.minhash import SIMILAR, Sketches, grams_of, sketch_of
from tasks.data.quality_rules import RULES, flags_of
from tasks.ingest import ingest
from tasks.validate import tell, validate
from tests.conftest import ROOT

WORDS = [f"word{i}" for i in range(5000)]


def told(seed: int, changed: int = 0) -> str:
    """A story of 100 words by chance, the last ones replaced."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(100)]
    return " ".join(words[: 100 - changed] + [f"other{seed}x{i}" for i in range(changed)])


def bring(settings: Settings, store: Store, path: Path, rows: list[dict[str, Any]]) -> Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ingest(settings, store, str(path))


def counts(split: Split) -> dict[str, int]:
    return {finding.what: finding.count for finding in split.findings}


def jaccard(one: str, other: str) -> float:
    a, b = set(grams_of(one.split())), set(grams_of(other.split()))
    return len(a & b) / len(a | b)


def repeats(grams: list[list[str]], folder: Path) -> dict[int, int]:
    """{row: the first row that it nearly repeats}"""
    (folder / "values").write_bytes(b"".join(map(sketch_of, grams)))
    first = Sketches(folder / "values", np.arange(len(grams))).first().tolist()
    return {row: one for row, one in enumerate(first) if row != one}


@pytest.mark.parametrize("block", [minhash.BLOCK_ROWS, 100, 7])
def test_near_duplicates_are_those_of_the_exact_similarity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int,
) -> None:
    monkeypatch.setattr(minhash, "BLOCK_ROWS", block)
    texts = [told(seed, changed) for seed in range(400) for changed in (0, 1 + seed % 30)]
    found = repeats([grams_of(text.split()) for text in texts], tmp_path)
    exact = {row: jaccard(texts[row - 1], texts[row]) for row in range(1, len(texts), 2)}
    assert set(found.items()) <= {(row, row - 1) for row in exact}
    assert all(row in found for row, similar in exact.items() if similar > SIMILAR + 0.1)
    assert all(exact[row] > SIMILAR - 0.15 for row in found)
    wanted = [row for row, similar in exact.items() if similar >= SIMILAR]
    assert len(found.keys() & wanted) > 0.9 * len(wanted) > 100


def test_texts_that_share_half_of_their_words_are_no_near_duplicates(tmp_path: Path) -> None:
    assert repeats([grams_of(f"{told(0)} {told(row + 1)}".split()) for row in range(500)], tmp_path) == {}


@pytest.mark.parametrize("words", range(9))
def test_grams_are_five_neighbouring_words(words: int) -> None:
    text = ["a", "bb", "c-c", "\u00e4", "", "e", "ff", "g", "h"][:words]
    assert grams_of(text) == [" ".join(text[i : i + 5]) for i in range(max(0, words - 4))]


def test_near_duplicates_are_the_same_in_every_process() -> None:
    code = ("from tasks.data.minhash import *; s = [[str(j // 9 * i) for j in range(80)] for i in range(60)]; "
            "print(b''.join(sketch_of(grams_of(words)) for words in s).hex())")
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": seed}, cwd=ROOT).stdout
            for seed in ("1", "2")}
    assert len(runs) == 1


@pytest.mark.parametrize(("most", "compared"), [(2, 2), (3, 3), (4, 3)])
def test_no_more_rows_are_compared_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, store: Store, tmp_path: Path, most: int, compared: int,
) -> None:
    monkeypatch.setattr(quality, "MOST_ROWS", most)
    data = bring(settings, store, tmp_path / "d", [{"text": f"{row} {told(0)}"} for row in range(3)])
    split = validate(store, data, None, 1)
    assert split.compared == compared and counts(split).get(NEAR, 0) == compared - 1


@pytest.mark.slow
def test_any_number_of_processes_finds_the_same(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "MARK_BYTES", 1)
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 4096)
    rows = [{"prompt": f"{told(row // 3)} {row}\n", "completion": f"answer {row % 7}" if row % 50 else "a \ufffd b"}
            for row in range(400)]
    bring(settings, store, tmp_path / "d", rows), bring(settings, store, tmp_path / "h", rows[:90])
    started = []

    def noted(command: list[str], log: Path) -> subprocess.Popen[bytes]:
        started.append(command)
        return spawn(command, log=log)

    monkeypatch.setattr(quality, "spawn", noted)
    found = []
    for processes in (1, 2, 3):
        own = Store(Settings(home=tmp_path / f"home{processes}"))
        here = [ingest(settings, own, str(tmp_path / name)) for name in ("d", "h")]
        split = validate(own, here[0], here[1], 50, "all", processes=processes)
        folder = own.fetch(split.folder)
        found.append((split, {file.name: file.read_bytes() for file in sorted(folder.iterdir())}))
        assert len(started) == (0 if processes == 1 else 2 * processes)
        started.clear()
    assert found[0] == found[1] == found[2] and counts(found[0][0])[NEAR] > 100


def test_a_small_file_is_looked_at_by_this_process(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "spawn", None)
    data = bring(settings, store, tmp_path / "d", [{"text": told(row)} for row in range(300)])
    assert data.bytes > 3 * jsonl.BLOCK_BYTES and validate(store, data, None, 1, processes=2).train_rows == 299


def test_a_process_that_dies_is_told_and_leaves_no_other(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "MARK_BYTES", 1)
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 256)
    data = bring(settings, store, tmp_path / "d", [{"text": told(row)} for row in range(40)])
    children: list[subprocess.Popen[bytes]] = []

    def dies(command: list[str], log: Path) -> subprocess.Popen[bytes]:
        code = "import time; time.sleep(60)" if not children else "import os; os.kill(os.getpid(), 9)"
        children.append(subprocess.Popen([sys.executable, "-c", code]))
        return children[-1]

    monkeypatch.setattr(quality, "spawn", dies)
    with pytest.raises(Transient, match="a process that looked at rows died"):
        validate(store, data, None, 1, processes=2)
    assert [child.poll() is not None for child in children] == [True, True]


def test_what_all_rows_begin_with_makes_no_near_duplicates(settings: Settings, store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"{told(0)} {told(seed)[:60]}", "completion": f"a{seed}"} for seed in range(1, 30)]
    split = validate(store, bring(settings, store, tmp_path / "d.jsonl", rows), None, 1)
    assert split.findings == [] and split.compared == 29


def test_rows_are_doubted_as_a_whole(settings: Settings, store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"{told(0)} {seed}", "completion": f"{seed} {seed} {seed}"} for seed in range(9)]
    assert validate(store, bring(settings, store, tmp_path / "d.jsonl", rows), None, 1).findings == []


TEXT = "This is a plain sentence of ten words or so."


COUNTED = "five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.mark.parametrize(("texts", "rules"), [
    ([TEXT], []), ([TEXT, "42"], []), (["你好，世界。今天天气很好。"], []), (["tab\there\r\n\u0085"], []),
    ([TEXT + "\x07"], [0]), ([TEXT, "caf\ufffd"], [0]),
    (["1 2 3 " + COUNTED], []), (["1 2 3 4 " + COUNTED], [1]), (["1 + 1 =", "2"], [1]),
    ([TEXT + " I said it again and again." * 8], [2]), (["a " * 30], [2]),
    (["-" * 100 + TEXT], [2]), (["-" * 99 + TEXT], []),
    ([TEXT, f" {TEXT.upper()}\n"], [2, 3]), (["Yes", "yes"], [3]), (["Yes", "yes!"], [])])
def test_each_flag_is_raised_by_what_its_docstring_says(texts: list[str], rules: list[int]) -> None:
    words = "\n".join(texts).lower().split()
    assert flags_of(texts, words, grams_of(words)) == [list(RULES)[rule] for rule in rules]


ROWS = [{"prompt": told(0), "completion": "c"}, {"prompt": told(0), "completion": "c"},  # line 2: a copy
        {"prompt": told(0, 2), "completion": "c"},  # line 3: nearly
        {"prompt": told(1), "completion": "c"}, {"prompt": told(1), "completion": "another"},  # lines 4, 5: leaks
        {"prompt": told(2, 2), "completion": "c"},  # line 6: nearly a row of the validation data
        {"prompt": told(3), "completion": "damaged \ufffd"}, {"prompt": told(4), "completion": "good"}]
ASKED = [{"prompt": told(1), "completion": "x"}, {"prompt": told(2), "completion": "c"}]


@pytest.mark.parametrize(("drop", "lines"), [
    ("none", []), ("duplicates", [2]), ("leaks", [4, 5]), ("duplicates+leaks", [2, 4, 5]), ("all", [2, 3, 4, 5, 6, 7])])
def test_what_is_dropped_is_kept_with_its_line_and_reason(
    settings: Settings, store: Store, tmp_path: Path, drop: Drop, lines: list[int],
) -> None:
    data, others = (bring(settings, store, tmp_path / name, rows) for name, rows in (("d", ROWS), ("v", ASKED)))
    split = validate(store, data, others, 9, drop)
    folder = store.fetch(split.folder)
    kept = [json.loads(text) for text in (folder / "train.jsonl").read_text().splitlines()]
    assert kept == [row for line, row in enumerate(ROWS, start=1) if line not in lines]
    assert (folder / "train.places").read_text().splitlines() == [
        f"d line {n}" for n in range(1, len(ROWS) + 1) if n not in lines]
    assert split.dropped == len(lines) and (folder / "dropped.jsonl").exists() is bool(lines)
    if lines:
        dropped = [json.loads(text) for text in (folder / "dropped.jsonl").read_text().splitlines()]
        assert [row["where"] for row in dropped] == [f"d line {n}" for n in lines]
        assert [row["row"] for row in dropped] == [ROWS[n - 1] for n in lines]
        reasons = {2: COPY, 3: NEAR, 4: LEAK, 5: LEAK, 6: NEAR_LEAK, 7: next(iter(RULES))}
        assert [row["reason"] for row in dropped] == [reasons[n] for n in lines]
    assert counts(split) == {COPY: 1, NEAR: 2, LEAK: 2, NEAR_LEAK: 1, next(iter(RULES)): 1}
    said = list[str]()
    tell(split, drop, said.append)
    left_out = [f"drop={drop} left {len(lines)} rows out of those found; they are in {split.folder}/dropped.jsonl"]
    assert said == [*map(str, split.findings), *(left_out if lines else [])]


def test_of_near_copies_one_stays_that_is_not_dropped_itself(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    """The first of each two or three is damaged."""
    damaged, clean = [told(seed) + " \ufffd" for seed in (1, 2)], [told(1), told(2), told(2, 2), told(3)]
    rows = [{"prompt": text, "completion": str(n)} for n, text in enumerate([*damaged, *clean])]
    split = validate(store, bring(settings, store, tmp_path / "d", rows), None, 1, "all")
    folder = store.fetch(split.folder)
    kept = [json.loads(text)["prompt"] for name in ("train", "validation")
            for text in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert sorted(kept) == sorted([told(1), told(2), told(3)])
    whole = validate(store, bring(settings, store, tmp_path / "d", rows), None, 1)
    assert whole.dropped == 0 and counts(whole)[NEAR] == 3


def test_the_choice_of_what_to_drop_is_part_of_the_split_s_name(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    data = bring(settings, store, tmp_path / "d", ROWS)
    splits = [validate(store, data, None, 1, drop) for drop in ("none", "duplicates", "all")]
    assert len({split.digest for split in splits}) == 3 and validate(store, data, None, 1) == splits[0]
    found = validate(store, data, None, 1, "all")
    assert found == splits[2] and isinstance(found.findings[0], Finding)


def test_a_data_set_is_not_dropped_altogether(settings: Settings, store: Store, tmp_path: Path) -> None:
    data = bring(settings, store, tmp_path / "d", ROWS[:1])
    with pytest.raises(DataError, match="drop is leaks, and no row is left"):
        validate(store, data, data, 1, "leaks")


def test_held_out_rows_that_say_nearly_what_is_trained_on_are_noted(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    rows = [{"prompt": told(seed, changed), "completion": "c"} for seed in range(20) for changed in (0, 2)]
    split = validate(store, bring(settings, store, tmp_path / "d", rows), None, 4)
    assert counts(split) == {NEAR: 20, HELD_OUT_NEAR: 4}


@pytest.mark.slow
def test_the_47_leaks_of_samsum_are_found_and_dropped(
    settings: Settings, store: Store, shared: Path, tmp_path: Path,
) -> None:
    """47 dialogues of its validation split also stand in its training split (the data's SOURCE.md)."""
    for name in ("train", "val"):
        converted = subprocess.run(
            [sys.executable, str(shared / "tools" / "to_jsonl.py"), "samsum", name], capture_output=True, check=True)
        (tmp_path / f"{name}.jsonl").write_bytes(converted.stdout)
    train, held = (ingest(settings, store, str(tmp_path / f"{name}.jsonl")) for name in ("train", "val"))
    prompts = [{json.loads(row)["prompt"] for row in (tmp_path / f"{name}.jsonl").open()} for name in ("train", "val")]
    split = validate(store, train, held, 818, "leaks")
    rows = [json.loads(row) for row in (store.fetch(split.folder) / "dropped.jsonl").open()]
    assert split.leaks == 47 and {row["row"]["prompt"] for row in rows} == prompts[0] & prompts[1]
    assert counts(split)[LEAK] == len(rows) == split.dropped == 51 and split.train_rows == 14_732 - 51
