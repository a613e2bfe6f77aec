"""What our modules log, in the log of the flow run that they work for; and what a user can mend, without a traceback.

A handler of our own instead of PREFECT_LOGGING_EXTRA_LOGGERS: no machine can forget to set it.
"""

from __future__ import annotations

import logging

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from infra.errors import UserError

OURS = ("flows", "tasks", "infra")
FLOWS, TASKS = "prefect.flow_runs", "prefect.task_runs"
CRASHES = ("Crash detected!", "Finished in state Crashed(")
FAILURES = ("Encountered exception during execution", "Finished in state Failed(")
"""How Prefect's lines about the end of a run begin."""


class RunLogHandler(APILogHandler):
    """Sends a record to the log of the run whose code made it; others are not its business."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, if there is a run."""
        if TaskRunContext.get() or FlowRunContext.get():
            super().emit(record)


def show_in_runs() -> None:
    """From now on, what our modules log inside of a run stands in the run's log, and a user's error as a sentence."""
    for name in OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, RunLogHandler) for handler in logger.handlers):
            logger.addHandler(RunLogHandler())
            logger.setLevel(logging.INFO)
    for name in (FLOWS, TASKS):
        logging.getLogger(name).addFilter(_without_traceback)


def leave_endings_out() -> None:
    """On the terminal of a command whose last line says why its run failed or was interrupted: Prefect would say it
    four times before. Its server hears it all the same."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_no_ending)


def _is_no_ending(record: logging.LogRecord) -> bool:
    """A task that failed says where it was, and a traceback what no user can mend: these are none."""
    ends = CRASHES + FAILURES if record.name == FLOWS else CRASHES
    return bool(record.exc_info) or not record.getMessage().startswith(ends)


def _without_traceback(record: logging.LogRecord) -> bool:
    """What the user can mend is a sentence; a traceback would hide it."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return True
