"""Finish now: a person asks a run to end its training after the step under way, and to make a version of the weights.

In:   <store>/runs/<flow run id>.finish, written by whoever asks      Out: <training>/finish, which the ranks look for
It counts for one run: the same training asked for again trains to its end. The weights are not those of the whole
training, so they have an id of their own; the note then holds it, and a run that is started again finds them by it.
Dies half-way: the note stays, and the next process of the run ends the training after its next step.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prefect import runtime

from infra.errors import AnnealError
from infra.storage.store import Store
from tasks.distributed.contract import FINISH
from tasks.runs.attempt import RUNS

ASKED = "asked"
LOOK_EVERY_S = 2.0
log = logging.getLogger(__name__)


def ask_to_finish(store: Store, run: str) -> None:
    """Ask a flow run to finish its training; once more is the same. Raises Transient."""
    if store.read(_note(run)) is None:
        store.write(_note(run), ASKED)


def asked_to_finish(store: Store) -> bool:
    """Whether this process's run is asked to."""
    run = runtime.flow_run.id
    return bool(run) and store.read(_note(run)) is not None


def finished_before(store: Store) -> str:
    """The id of the training that this run has finished early; empty where it has not."""
    run = runtime.flow_run.id
    found = (store.read(_note(run)) or "") if run else ""
    return "" if found == ASKED else found


def note_finished(store: Store, training: str) -> None:
    """Note it."""
    store.write(_note(runtime.flow_run.id), training)


class FinishWatch(threading.Thread):
    """Looks for the note while ranks train, in a thread: they do not wait for a store that hangs."""

    def __init__(self, store: Store, training: Path) -> None:
        super().__init__(name="finish", daemon=True)
        self._store, self._run, self._mark = store, runtime.flow_run.id, training / FINISH
        self._over = threading.Event()

    def __enter__(self) -> FinishWatch:
        self._mark.unlink(missing_ok=True)  # of another run, which ended before its ranks did
        if self._run:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()

    def run(self) -> None:
        """Until it is there, or the training is over."""
        while not self._over.is_set():
            with suppress(AnnealError):  # a store that is away is asked again
                if self._store.read(_note(self._run)) is not None:
                    log.info("asked to finish: the training ends after the step under way")
                    self._mark.touch()
                    return
            self._over.wait(LOOK_EVERY_S)


def _note(run: str) -> str:
    return f"{RUNS}/{run}.finish"
