"""What our modules log, in the log of the flow run that they work for; and what a user can mend, without a traceback.

A handler of our own instead of PREFECT_LOGGING_EXTRA_LOGGERS: no machine can forget to set it.
"""

from __future__ import annotations

import logging

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from infra.errors import UserError

OURS = ("flows", "tasks", "infra")
PREFECTS = ("prefect.flow_runs", "prefect.task_runs")


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
    for name in PREFECTS:
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """What the user can mend is a sentence; a traceback would hide it."""
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return True
