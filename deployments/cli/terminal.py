"""What a terminal shows while a command works: one line a step, a moving line for the step that runs, warnings.

In:   what the run tells (infra/run_listener.py), log records      Out: lines on stderr
Quiet is the default: of all log lines only warnings of ours, and what a step waits for. With --verbose Prefect's own
console log takes the place of all this. Without a terminal there is no moving line, and a line now and then instead.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from deployments.cli.words import money, summary_of
from infra.progress import seconds_in_words
from infra.records import Evaluation, Record
from infra.run_listener import RunListener, listening

PLAIN_EVERY_S = 30.0
"""Between two lines about the step that runs, where no line can move."""
OURS = ("flows", "tasks", "infra", "deployments", "prefect.flow_runs", "prefect.task_runs")
RETRY = " will start "
"""Stands in Prefect's line about a step that is tried again, which says what it waits for."""
SAID_ELSEWHERE = ("Crash detected!", "Finished in state ", "Encountered exception during execution",
                  "registered, not deployed")
"""The command's last lines say why a run failed, or what came of it."""
OWN_SERVER = "temporary server"
QUIET_BEFORE_IMPORT = {"MLFLOW_LOGGING_LEVEL": "ERROR"}
HIDDEN_STEPS = ("scorable", "newest version", "version")
NAME_WIDTH = 11


class Terminal(RunListener):
    """Prints; and keeps what the steps returned, for the command's answer."""

    def __init__(self, console: Console | None = None, *, prefect_page: str = "", silent: bool = False) -> None:
        """`prefect_page`: address of a run's page without the run's id; empty where no server outlives the command.
        `silent`: Prefect's own log is shown instead; only what the steps returned is kept."""
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.results: dict[str, Record] = {}
        self.forecast: Any = None
        self.run = ""
        self.is_silent = silent
        self._page, self._moves = prefect_page, self.console.is_terminal and not silent
        self._live = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}"), console=self.console, transient=True)
        self._moving: TaskID | None = None
        self._step, self._began, self._began_at = "", time.monotonic(), 0.0
        self._told = 0.0
        self._warned: set[str] = set()

    def close(self) -> None:
        """Take the moving line away."""
        self._stop_moving()

    def say(self, line: str) -> None:
        """Print a line above the moving one."""
        if not self.is_silent:
            self.console.print(escape(line), soft_wrap=True)

    def tell(self, line: str, step: str = "") -> None:
        """Print a line about a step, by default the one that runs."""
        self.say(f"  {step or self._step:{NAME_WIDTH}} {line}")

    def warn(self, line: str) -> None:
        """Print a warning, the same one once."""
        if line not in self._warned and not self.is_silent:
            self._warned.add(line)
            self.console.print(f"[yellow]warning:[/yellow] {escape(line)}", soft_wrap=True)

    def run_begins(self, run: str) -> None:
        """Say where the run is to be seen."""
        self.run = run
        if self._page:
            self.say(f"Run: {self.run_page}")

    @property
    def run_page(self) -> str:
        """The run's page in Prefect; empty where no server outlives the command."""
        return f"{self._page}{self.run}" if self._page and self.run else ""

    def step_begins(self, name: str) -> None:
        """Show the step as the one that runs."""
        self._step, self._began, self._told = name, time.monotonic(), time.monotonic()
        self._began_at = round(time.time(), 3)
        if name not in HIDDEN_STEPS:
            phase = self.forecast.phases.get(name) if self.forecast is not None else None
            self._move(0, None, self._left(phase.likely) if phase else "")

    def step_ends(self, name: str, result: Record | None, *, was_done: bool) -> None:
        """Print the step's line."""
        self._stop_moving()
        if result is not None:
            self.results[name] = result
        if name in HIDDEN_STEPS:
            return
        took = "done before" if was_done else seconds_in_words(time.monotonic() - self._began)
        about = summary_of(name, result)
        self.tell(f"{about}{' ' if about else ''}({took})", name)
        if isinstance(result, Evaluation):
            from tasks.ui.reports import scores  # with prefect, which a run has loaded

            for line in scores(result)[:-1]:
                self.say(f"    {line}")

    def gets_on(self, done: float, total: float, what: str) -> None:
        """Move the line, or print one now and then."""
        if self.forecast is not None and self._step in self.forecast.phases and 0 < done < total:
            what += f"  {self._left((time.monotonic() - self._began) * (total / done - 1))}"
        self._move(done, total, what)
        if self._is_due():
            self.tell(what)

    def trains(self, event: Mapping[str, Any]) -> None:
        """Step, loss, tokens/s, time left, price; checkpoints that an interruption saved, and what went wrong."""
        name = event["event"]
        if event.get("time", self._began_at) < self._began_at:  # of an earlier launch, told again for the curves
            return
        if name == "step":
            line = self._training_line(event)
            self._move(event["step"], event["total"], line)
            if self._is_due() or (event["step"] == 1 and not self._moves):
                self.tell(line)
        elif name == "resume":
            self.tell(f"goes on at step {event['step']} of {event['total']}")
        elif name == "preempted":
            self.tell(f"stopped; checkpoint of step {event['step']} saved")
        elif name == "stopped_early":
            self.tell(f"stopped early at step {event['step']}; best step {event['best_step']}")
        elif name == "finished_early":
            self.tell(f"finished at step {event['step']}, as asked for")
        elif name in ("non_finite", "checkpoint_passed_over", "not_repeatable"):
            details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "time"))
            self.warn(f"{name.replace('_', ' ')}: {details}")

    def expects(self, forecast: Record) -> None:
        """Print the forecast in a line."""
        self.forecast = forecast
        lines = self.forecast.lines()
        self.tell(f"{self.forecast.steps} steps, {lines['time']}, {lines['price']}", "forecast")
        if self.forecast.fits is False:
            self.warn(f"memory: {lines['memory of each rank']}; fits: {lines['fits']}")

    def _training_line(self, event: Mapping[str, Any]) -> str:
        speed = f"{event['tokens_per_s']:.0f} tokens/s"
        return (f"step {event['step']}/{event['total']}  loss {event['loss']:.4f}  {speed}  "
                f"{self._left(event['eta_s'])}{money(event.get('usd'))}")

    def _left(self, step_s: float) -> str:
        """How long the whole run still takes, if the step that runs takes so many seconds more."""
        later = self.forecast.later_s(self._step) if self.forecast is not None else 0.0
        return f"{seconds_in_words(step_s + later)} left"

    def _is_due(self) -> bool:
        """Without a moving line: whether it is time for a line of its own."""
        if self._moves or time.monotonic() - self._told < PLAIN_EVERY_S:
            return False
        self._told = time.monotonic()
        return True

    def _move(self, done: float, total: float | None, what: str) -> None:
        if not self._moves:
            return
        if self._moving is None:
            self._live.start()
            self._moving = self._live.add_task(f"{self._step:{NAME_WIDTH}}", total=total, what=what)
        self._live.update(self._moving, completed=done, total=total, what=escape(what))

    def _stop_moving(self) -> None:
        if self._moving is not None:
            self._live.remove_task(self._moving)
            self._live.stop()
            self._moving = None


class TerminalHandler(logging.Handler):
    """Prints of all log records those that a user can act on."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.INFO)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print it, if it is one."""
        text = record.getMessage()
        if not record.name.startswith(OURS) or text.startswith(SAID_ELSEWHERE):
            return
        if record.levelno >= logging.WARNING:
            self._terminal.warn(text)
        elif RETRY in text:
            self._terminal.warn(text.replace("Task run failed with exception: ", "tried again: "))


def be_quiet_before_import() -> None:
    """What libraries read when they are imported, and a line that Prefect writes after all is over."""
    for name, value in QUIET_BEFORE_IMPORT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("prefect").addFilter(lambda record: OWN_SERVER not in record.getMessage())


@contextmanager
def shown_on(terminal: Terminal) -> Iterator[Terminal]:
    """Let the terminal hear the run and the log. Call it after prefect is imported, which sets the log up anew."""
    root, handler = logging.getLogger(), TerminalHandler(terminal)
    before = root.handlers[:]
    if not terminal.is_silent:
        root.handlers[:] = [one for one in before if not _prints(one)] + [handler]
    try:
        with listening(terminal):
            yield terminal
    finally:
        terminal.close()
        root.handlers[:] = before


def _prints(handler: logging.Handler) -> bool:
    """Whether a handler writes to this process's terminal."""
    return isinstance(handler, logging.StreamHandler) and getattr(handler, "stream", None) in (sys.stderr, sys.stdout)
