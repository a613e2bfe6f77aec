"""How long steps took: pytest tests/tasks/runs/test_step_times.py"""

from __future__ import annotations

import time
from contextlib import suppress

from tasks.runs.step_times import step_times, timed, timing, waiting


def test_waiting_is_no_work() -> None:
    with timing():
        with timed("train"):
            with waiting():
                time.sleep(0.05)
            time.sleep(0.01)
        assert 0.005 < step_times()["train"] < 0.045
    assert step_times() == {}


def test_a_step_that_fails_or_was_done_before_is_not_counted() -> None:
    with timing():
        with suppress(ValueError), timed("train"):
            raise ValueError
        with timed("evaluate") as clock:
            clock.forget()
        assert step_times() == {}


def test_outside_of_a_run_nothing_is_kept() -> None:
    with timed("train"), waiting():
        pass
    assert step_times() == {}
