"""MLflow's database in the home: one process at a time opens it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from infra.files import lock_file
from infra.settings import Settings

LOCK = "mlflow.lock"


@contextmanager
def alone_with_database(settings: Settings) -> Iterator[None]:
    """Whoever opens a new database makes its tables, and of two that do so at once one fails. Waits for the other.
    Raises UserError, OSError (`lock_file`)."""
    if not os.access(settings.home_path, os.W_OK):  # nothing can be made there
        yield
        return
    with lock_file(settings.home_path / LOCK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
