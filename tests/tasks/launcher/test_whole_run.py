"""How long the whole run takes, before it does: pytest tests/tasks/launcher/test_whole_run.py"""

from __future__ import annotations

import dataclasses

import pytest

from infra.settings import Settings
from tasks.launcher.forecast import Forecast, forecast
from tasks.launcher.measured import note_measured, read_measured
from tasks.launcher.whole_run import Phase, taken_by, to_keep, whole
from tasks.ui.reports import forecast_report
from tests.support.past import Past

TIMES = {"train": 200.0, "evaluate": 76.0, "register": 5.0, "ingest": 9.0}
PHASES: tuple[Phase, ...] = ("start-up", "train", "evaluate", "register")


def expected(settings: Settings, past: Past, **knobs: int) -> Forecast:
    return forecast(settings, dataclasses.replace(past.spec, **knobs), past.pack, past.base)  # type: ignore[arg-type]


def test_the_first_run_on_a_machine_says_that_it_does_not_know(settings: Settings, past: Past) -> None:
    found = expected(settings, past)
    assert tuple(found.phases) == PHASES and not found.is_measured
    low, likely, high = whole(found.phases)
    assert low < likely / 1.5 and high > likely * 1.5
    assert found.lines()["time"].startswith("not known yet, between ")


def test_after_a_run_the_next_forecast_is_within_a_quarter(settings: Settings, past: Past) -> None:
    trained = dataclasses.replace(past.trained, seconds=180.0)
    note_measured(settings, to_keep(expected(settings, past).works, trained, TIMES))
    found = expected(settings, past)
    assert whole(found.phases).likely == pytest.approx(281, rel=0.01) and found.is_measured
    assert found.lines()["time"] == "4 min 41 s (3 min 59 s to 5 min 23 s), by runs like it on this machine"
    assert found.later_s("train") == pytest.approx(81) and found.later_s("register") == 0


def test_each_steps_actual_time_stands_beside_its_forecast(settings: Settings, past: Past) -> None:
    trained = dataclasses.replace(past.trained, seconds=180.0)
    report = forecast_report(expected(settings, past), trained, TIMES)
    for name, actual in (("start-up", "20 s"), ("train", "3 min"), ("evaluate", "1 min 16 s"), ("register", "5.0 s")):
        (line,) = [line for line in report.splitlines() if line.startswith(f"| time of {name} |")]
        assert line.endswith(f"| {actual} |"), line
    assert "| time | not known yet" in report and "| 4 min 41 s |" in report
    assert "| memory of evaluation |" in report and "| memory of the predictor |" in report


def test_a_training_that_was_resumed_teaches_nothing_of_its_time(settings: Settings, past: Past) -> None:
    resumed = dataclasses.replace(past.trained, resumed_from=100)
    note_measured(settings, to_keep(expected(settings, past).works, resumed, TIMES))
    assert {one.step for one in read_measured(settings)} == {"evaluate", "register"}


def test_a_step_that_was_done_before_took_nothing(past: Past) -> None:
    assert taken_by(past.trained, {"evaluate": 3.0}) == {"evaluate": 3.0}


def test_another_base_or_method_is_not_alike(settings: Settings, past: Past) -> None:
    note_measured(settings, to_keep(expected(settings, past).works, past.trained, TIMES))
    past.base = dataclasses.replace(past.base, digest="c" * 64)
    assert not expected(settings, past).is_measured
