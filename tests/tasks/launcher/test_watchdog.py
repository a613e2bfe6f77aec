"""tasks/launcher/watchdog.py: how long a training may be silent."""

from __future__ import annotations

from typing import Any

import pytest

from infra.settings import Settings
from tasks.launcher.watchdog import ENOUGH_STEPS, StallWatchdog

START_S, STEP_S = 900.0, 120.0


@pytest.fixture
def pace(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> StallWatchdog:
    """Of a training that was just launched, at 0."""
    monkeypatch.setattr("tasks.launcher.watchdog.time.time", lambda: 0.0)
    made = StallWatchdog(settings.model_copy(update={"stall_timeout_s": START_S, "step_timeout_s": STEP_S}))
    made.launch()
    return made


def event(name: str, time: float = 0.0, what: str = "validation") -> Any:
    """As much of an event as the watchdog looks at."""
    return {"event": name, "what": what, "time": time}


def steps(pace: StallWatchdog, count: int, every_s: float, *, since: float = 0.0) -> None:
    for step in range(count):
        pace.see(event("step", since + step * every_s))


def trained(pace: StallWatchdog, count: int, every_s: float, pause_every: int) -> None:
    """As the trainer tells it: each step once the next one is done, the last before a pause at once."""
    for done in range(1, count + 1):
        if done % pause_every != 1:
            pace.see(event("step", done * every_s))
        if done % pause_every == 0:
            pace.see(event("step", done * every_s))
            pace.see(event("pause", done * every_s, "checkpoint"))


def test_a_start_has_all_the_time(pace: StallWatchdog) -> None:
    assert pace.limit_s() == START_S
    pace.see(event("start"))
    steps(pace, ENOUGH_STEPS + 1, 1.0)  # one gap less, and the newest is not counted yet
    assert pace.limit_s() == START_S


@pytest.mark.parametrize(("every_s", "limit_s"), [(0.1, STEP_S), (12.0, STEP_S), (20.0, 200.0), (200.0, START_S)])
def test_between_steps_ten_times_the_usual_but_within_bounds(
    pace: StallWatchdog, every_s: float, limit_s: float,
) -> None:
    steps(pace, ENOUGH_STEPS + 2, every_s)
    assert pace.limit_s() == pytest.approx(limit_s)


def test_a_pause_that_another_one_follows_is_learned_too(pace: StallWatchdog) -> None:
    for round_s in (0.0, 1000.0, 2000.0):
        pace.see(event("pause", round_s, "validation"))
        pace.see(event("validation", round_s + 40))
        pace.see(event("pause", round_s + 40, "checkpoint"))
        pace.see(event("step", round_s + 41))
    pace.see(event("pause", 3000.0, "validation"))
    assert pace.limit_s() == pytest.approx(400.0)


@pytest.mark.parametrize("pause_every", [3, 4, 10])
def test_the_step_before_a_pause_which_is_told_at_once_says_nothing(pace: StallWatchdog, pause_every: int) -> None:
    trained(pace, 60 + 2, 30.0, pause_every)
    steps(pace, 1, 30.0, since=62 * 30.0)
    assert pace.limit_s() == pytest.approx(300.0)


def test_one_long_step_changes_little(pace: StallWatchdog) -> None:
    steps(pace, 10, 20.0)
    steps(pace, 10, 20.0, since=1000.0)
    assert pace.limit_s() == pytest.approx(200.0)


@pytest.mark.parametrize("name", ["pause", "validation", "start", "resume", "done"])
def test_what_is_no_step_has_all_the_time_until_the_next_one(pace: StallWatchdog, name: str) -> None:
    steps(pace, 10, 1.0)
    pace.see(event(name))
    assert pace.limit_s() == START_S
    steps(pace, 1, 1.0, since=500.0)
    assert pace.limit_s() == STEP_S


def test_a_pause_like_those_before_it_has_ten_times_what_they_took(pace: StallWatchdog) -> None:
    for number in range(2):
        assert pace.limit_s() == START_S, number
        pace.see(event("pause", 1000.0 * number, "checkpoint"))
        assert pace.limit_s() == START_S, number
        steps(pace, 1, 1.0, since=1000.0 * number + 30.0)  # the first step after it
    pace.see(event("pause", 5000.0, "checkpoint"))
    assert pace.limit_s() == pytest.approx(300.0)
    pace.see(event("validation", 5001.0))  # what it was for
    assert pace.limit_s() == pytest.approx(300.0)
    pace.see(event("pause", 5002.0, "validation"))
    assert pace.limit_s() == START_S, "none of its kind was seen"


def test_a_checkpoint_that_is_written_beside_the_steps_changes_nothing(pace: StallWatchdog) -> None:
    steps(pace, 10, 1.0)
    pace.see(event("checkpoint"))
    assert pace.limit_s() == STEP_S


@pytest.mark.parametrize("first", ["step", "pause"])
@pytest.mark.parametrize(("took_s", "limit_s"), [(5.0, STEP_S), (40.0, 400.0), (500.0, START_S)])
def test_a_start_again_has_ten_times_what_the_first_one_took(
    pace: StallWatchdog, first: str, took_s: float, limit_s: float,
) -> None:
    pace.see(event("resume", took_s / 2))
    assert pace.limit_s() == START_S
    pace.see(event(first, took_s))
    steps(pace, 10, 1.0, since=took_s)
    pace.launch()
    assert pace.limit_s() == pytest.approx(limit_s)


def test_a_start_that_did_not_come_to_a_step_says_nothing(pace: StallWatchdog) -> None:
    pace.launch()
    assert pace.limit_s() == START_S
