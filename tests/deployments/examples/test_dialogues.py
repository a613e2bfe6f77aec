"""The demo's dialogue-summary set: seeded, held-out names, supported summaries, late facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import pytest
from rouge_score.rouge_scorer import RougeScorer

from deployments.examples import corpus, scenes
from deployments.examples.dialogues import MAX_UTTERANCES, MIN_UTTERANCES, SLOT, test_rows, train_rows, write
from deployments.examples.names import TEST, TRAIN, Cast
from deployments.examples.phrases import POOLS

test_rows.__test__ = False  # type: ignore[attr-defined]  # a generator of rows, not a test


def utterances(row: dict[str, str]) -> list[str]:
    return row["prompt"].split("\n\n")[1].splitlines()


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_same_seed_gives_the_same_rows() -> None:
    assert list(train_rows(50)) == list(train_rows(50))
    assert list(train_rows(50)) != list(train_rows(50, seed=5))


def test_a_shorter_set_is_the_start_of_a_longer_one() -> None:
    assert list(train_rows(10)) == list(train_rows(40))[:10]


@pytest.mark.slow
def test_write_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert [len(p.read_text().splitlines()) for p in first] == [3000, 60]
    assert set(json.loads(first[0].read_text().splitlines()[0])) == {"prompt", "completion"}


def test_splits_share_no_person_town_or_venue() -> None:
    assert not TRAIN.words() & TEST.words()
    assert not TRAIN.words() & set().union(*(words(row["prompt"]) for row in test_rows()))
    assert not TEST.words() & set().union(*(words(row["prompt"]) for row in train_rows()))


@pytest.mark.parametrize("rows, cast", [(train_rows, TRAIN), (test_rows, TEST)])
def test_every_name_of_a_summary_is_in_its_dialogue(
    rows: Callable[[], Iterator[dict[str, str]]], cast: Cast,
) -> None:
    for row in rows():
        assert words(row["completion"]) & cast.words() <= words(row["prompt"])


def test_every_plot_says_each_fact_of_its_summary_in_every_wording() -> None:
    for scene in scenes.SCENES:
        said = [turn.wordings for turn in scene.turns if not turn.optional]
        for pool, digit, _ in SLOT.findall(scene.summary):
            fact = re.compile(r"\{" + pool + digit + r"'?\}")
            assert pool in "ABC" or any(all(map(fact.search, wordings)) for wordings in said), scene.summary


def test_slots_name_a_pool_and_no_slot_is_left_in_a_row() -> None:
    text = "".join(scene.summary + str(scene.turns) for scene in scenes.SCENES)
    assert {pool for pool, _, _ in SLOT.findall(text)} <= set(POOLS) | {"A", "B", "C", "N", "town", "venue"}
    assert not any("{" in row["prompt"] + row["completion"] or "~" in row["prompt"] for row in train_rows())


def test_nearly_all_rows_are_distinct() -> None:
    rows = list(train_rows())
    assert len({row["prompt"] for row in rows}) >= 0.95 * len(rows)
    assert len({row["completion"] for row in rows}) >= 0.95 * len(rows)


def test_lengths_and_format() -> None:
    for row in train_rows(500):
        assert row["prompt"].startswith("Summarize the conversation.\n\n") and row["prompt"].endswith("\n\nSummary:")
        assert re.fullmatch(r" [A-Z].*\.", row["completion"])
        assert MIN_UTTERANCES <= len(utterances(row)) <= MAX_UTTERANCES
        assert all(re.match(r"[A-Z][a-z]+: .", line) for line in utterances(row))


def test_first_three_utterances_are_a_poor_summary() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(row["completion"], " ".join(utterances(row)[:3]))["rougeL"].fmeasure for row in test_rows()
    ]
    assert mean(scores) < 0.3


def test_malformed_plots_are_refused() -> None:
    with pytest.raises(ValueError, match="last line"):
        scenes.parse("A: hello\nB: hi")
    with pytest.raises(ValueError, match="expected 'A: wording"):
        scenes.parse("hello\n= {A} says hello.")


def test_corpus_holds_no_summary_no_instruction_and_no_name_of_either_split() -> None:
    summaries = {row["completion"].strip() for row in train_rows()} | {r["completion"].strip() for r in test_rows()}
    for row in corpus.corpus_rows(300):
        assert "Summar" not in row["text"]
        assert not words(row["text"]) & corpus.REAL
        assert not any(line in summaries for line in row["text"].splitlines())


def test_corpus_is_the_same_for_a_seed() -> None:
    assert list(corpus.corpus_rows(20)) == list(corpus.corpus_rows(20))
