"""What our modules log, in the log of the flow run that they work for.

A handler of our own instead of PREFECT_LOGGING_EXTRA_LOGGERS: no machine can forget to set it.
"""

from __future__ import annotations

import logging

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

OURS = ("flows", "tasks", "infra")


class RunLogHandler(APILogHandler):
    """Sends a record to the log of the run whose code made it; others are not its business."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send it, if there is a run."""
        if TaskRunContext.get() or FlowRunContext.get():
            super().emit(record)


def show_in_runs() -> None:
    """From now on, what our modules log inside of a run stands in the run's log."""
    for name in OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, RunLogHandler) for handler in logger.handlers):
            logger.addHandler(RunLogHandler())
            logger.setLevel(logging.INFO)
