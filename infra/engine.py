"""What workers of a machine start for a flow run: Prefect's engine, out of reach of a Ctrl-C at the worker.

In:   PREFECT__FLOW_RUN_ID, <home>/runs/<flow run id>.first     Out: how the run ended, told to Prefect; an exit code
A worker that is given no command starts one more process, which makes Prefect's imports only to look for the code, and
after a crash another one, to look for hooks. A run that was training when its process died begins with the imports of
its ranks (infra/warm.py), beside Prefect's own: each takes seconds of a processor.
Dies half-way: what it has started dies with it.
Run alone: python -m infra.engine, with the variables that a worker sets
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.errors import AnnealError
from infra.files import write_atomic
from infra.settings import Settings
from infra.warm import Warm, end_those_ahead, start_ahead

RUN = "PREFECT__FLOW_RUN_ID"


def is_engine() -> bool:
    """Whether this process is one."""
    return sys.orig_argv[1:3] == ["-m", "infra.engine"]


def runs_of(settings: Settings) -> Path:
    """Where this machine keeps notes and locks of its flow runs."""
    return settings.home_path / "runs"


def note_of(settings: Settings) -> Path | None:
    """Where it stands what to begin this process's flow run with; None outside of one that a worker started."""
    return runs_of(settings) / f"{os.environ[RUN]}.first" if RUN in os.environ else None


@contextmanager
def begins_with(settings: Settings, imports: Warm) -> Iterator[None]:
    """Unless this ends well, the next attempt at the run begins with these imports, where this module starts it."""
    note = note_of(settings)
    if note is not None:
        with suppress(OSError):
            write_atomic(note, imports.recipe)
    yield
    begin_with_nothing(settings)


def begin_with_nothing(settings: Settings) -> None:
    """The run needs no such imports any more, also what was started ahead."""
    end_those_ahead()
    if (note := note_of(settings)) is not None:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def main() -> None:
    """Begin with what is noted, then be Prefect's engine."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    # A damaged note, or wrong settings: the engine tells those in the run's log. Who needs the imports makes them.
    with suppress(AnnealError, OSError, ValueError, KeyError, TypeError):
        note = note_of(Settings())
        if note is not None and note.exists():
            start_ahead(note.read_text(encoding="utf-8"))
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
