"""What the terminal shows of a run: pytest tests/deployments/cli/test_terminal.py"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from deployments.cli import terminal as module
from deployments.cli.terminal import Terminal, shown_on
from infra.records import Dataset
from infra.run_listener import listener

STEP: dict[str, Any] = {"event": "step", "total": 4, "loss": 1.5, "tokens_per_s": 90.0, "eta_s": 61.0, "usd": 0.25}
DATA = Dataset(folder="datasets/x", sha256="0" * 64, bytes=24_000, source="d.jsonl")


@pytest.fixture(params=[False, True], ids=["plain", "tty"])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """Without a moving line, and with one."""
    one = Terminal(Console(file=io.StringIO(), force_terminal=request.param, width=120, color_system=None))
    with shown_on(one):
        yield one


def told(terminal: Terminal) -> str:
    file = terminal.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_step_is_a_line_with_what_it_made(terminal: Terminal) -> None:
    listener().step_begins("ingest")
    listener().step_ends("ingest", DATA, was_done=False)
    listener().step_begins("ingest")
    listener().step_ends("ingest", DATA, was_done=True)
    lines = told(terminal)
    assert "  ingest      24 kB (0.0 s)" in lines and "  ingest      24 kB (done before)" in lines
    assert terminal.results == {"ingest": DATA}


def test_the_training_line_has_step_loss_speed_time_and_price(terminal: Terminal) -> None:
    listener().step_begins("train")
    listener().trains({**STEP, "step": 1})
    assert terminal._training_line({**STEP, "step": 1}) == (
        "step 1/4  loss 1.5000  90 tokens/s  1 min 1 s left  0.25 USD")
    if not terminal.console.is_terminal:
        assert "  train       step 1/4  loss 1.5000  90 tokens/s  1 min 1 s left  0.25 USD" in told(terminal)


def test_without_a_terminal_steps_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Terminal(Console(file=io.StringIO(), force_terminal=False, width=120))
    with shown_on(one):
        listener().step_begins("train")
        for step in (1, 2, 3):
            listener().trains({**STEP, "step": step})
        assert told(one).count("step ") == 1, "the first step alone"
        monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
        listener().trains({**STEP, "step": 4})
    assert "step 4/4" in told(one)


def test_what_an_earlier_launch_told_is_not_told_again() -> None:
    one = Terminal(Console(file=io.StringIO(), force_terminal=False, width=120))
    with shown_on(one):
        listener().step_begins("train")
        listener().trains({**STEP, "step": 1, "time": time.time() - 100})
        listener().trains({"event": "resume", "step": 2, "total": 4, "time": time.time() + 1})
    assert told(one) == "  train       goes on at step 2 of 4\n", "nor an empty line at the end"


def test_of_the_log_only_what_a_user_can_act_on_is_shown(terminal: Terminal) -> None:
    logging.getLogger("tasks.pack").warning("9 of 100 rows were cut")
    logging.getLogger("tasks.pack").warning("9 of 100 rows were cut")
    logging.getLogger("flows.finetune").error("Finished in state Completed()")
    logging.getLogger("mlflow.store").warning("Creating initial database tables")
    logging.getLogger("torch").warning("is deprecated")
    assert told(terminal).count("warning: 9 of 100 rows were cut") == 1
    for noise in ("Completed()", "database tables", "deprecated"):
        assert noise not in told(terminal)


def test_brackets_in_data_are_no_markup(terminal: Terminal) -> None:
    terminal.warn("keys that are not used: 3 (line 1 [red])")
    assert "(line 1 [red])" in told(terminal)


def test_afterwards_the_log_is_as_before() -> None:
    before = logging.getLogger().handlers[:]
    with shown_on(Terminal(Console(file=io.StringIO()))):
        pass
    assert logging.getLogger().handlers == before
    assert type(listener()).__name__ == "RunListener"
