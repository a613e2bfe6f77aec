"""tasks/distributed/examples.py: where examples are cut, and what stands before an answer."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.distributed.examples import covered, divided, truncate


def test_cutting_takes_the_prompt_from_its_left_first() -> None:
    ids, labels = np.arange(10, dtype=np.int32), np.arange(10) >= 7
    kept, marks = truncate(ids, labels, 6, begin=1, prompt=7)
    assert kept.tolist() == [0, 5, 6, 7, 8, 9] and marks.sum() == 3


def test_cutting_spares_the_completion_when_prompts_are_learned_too() -> None:
    ids = np.arange(10, dtype=np.int32)
    kept, marks = truncate(ids, ids >= 1, 6, begin=1, prompt=7)
    assert kept.tolist() == [0, 5, 6, 7, 8, 9] and marks.sum() == 5


def test_cutting_takes_the_end_when_the_prompt_is_used_up() -> None:
    ids, labels = np.arange(10, dtype=np.int32), np.arange(10) >= 3
    kept, marks = truncate(ids, labels, 4, begin=1, prompt=3)
    assert kept.tolist() == [0, 3, 4, 5] and marks.sum() == 3


@pytest.mark.parametrize("size", [2, 3, 5, 9, 10, 30])
def test_wrapping_learns_every_label_exactly_once(size: int) -> None:
    for labels in (np.arange(23) >= 4, np.arange(23) % 7 >= 3, np.arange(23) >= 1):
        pieces = list(divided(labels, size))
        learned = [token for start, end, marks in pieces for token in np.arange(start, end)[marks].tolist()]
        assert learned == np.flatnonzero(labels).tolist()
        assert max(end - start for start, end, _ in pieces) <= size
        assert len({at for start, end, _ in pieces for at in range(start, end)}) == covered(pieces)


def test_an_answer_that_fits_is_not_divided_and_keeps_as_much_of_its_question_as_fits() -> None:
    assert [piece[:2] for piece in divided(np.arange(100) >= 90, 32)] == [(68, 100)]
    talk = np.isin(np.arange(60), [*range(10, 14), *range(20, 24), *range(50, 60)])
    assert [piece[:2] for piece in divided(talk, 26)] == [(0, 24), (34, 60)]


def test_before_a_longer_answer_stands_half_a_piece_of_its_question() -> None:
    assert [piece[:2] for piece in divided(np.arange(60) >= 20, 16)] == [(12, 28), (27, 43), (42, 58), (57, 60)]
