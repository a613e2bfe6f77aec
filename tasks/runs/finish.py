"""Finish now: a person asks a run to end its training, within seconds, and to make a version of the weights so far.

In:   <store>/runs/<flow run id>.finish, written by whoever asks      Out: <training>/finish, which the ranks look for
It counts for one run: the same training asked for again trains to its end. The weights are not those of the whole
training, so they have an id of their own; the note then holds it, and a run that is started again finds them by it.
Dies half-way: the note stays. The next process of the run goes on at the last checkpoint, comes as far as the one
before it, and ends the training there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prefect import runtime

from infra.errors import AnnealError
from infra.files import write_atomic
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
    """Write down which training this run finished, before it is stored."""
    store.write(_note(runtime.flow_run.id), training)


class FinishWatch(threading.Thread):
    """Looks for the note while ranks train, in a thread: they do not wait for a store that hangs."""

    def __init__(self, store: Store, training: Path, step: Callable[[], int]) -> None:
        """`step`: the newest step that the ranks have told."""
        super().__init__(name="finish", daemon=True)
        self._step = step
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
        if self.is_alive():
            self.join(LOOK_EVERY_S)

    def run(self) -> None:
        """Until it is there, or the training is over."""
        while not self._over.is_set():
            with suppress(AnnealError, OSError):  # a store that is away, or a full disk, is tried again
                if self._store.read(_note(self._run)) is not None:
                    write_atomic(self._mark, str(self._step()))
                    log.info("asked to finish: the training ends within its next steps")
                    return
            self._over.wait(LOOK_EVERY_S)


def _note(run: str) -> str:
    return f"{RUNS}/{run}.finish"
