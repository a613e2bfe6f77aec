"""One process at a training, on this machine or on all that share ANNEAL_HOME.

In:   the training's run folder       Out: a lock beside it, held for as long as the process lives
Dies half-way: the kernel drops the lock at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from infra.errors import Transient, UserError
from infra.files import locked

LOCK_POLL_S = 2.0
KILL_WAIT_S = 5.0
log = logging.getLogger(__name__)


@contextmanager
def only_one(run: Path, takeover_s: float = 0) -> Iterator[None]:
    """Hold the training's lock; the kernel drops it when this process dies.

    The lock lies beside the run folder, which is removed at the end. With `takeover_s` its holder has lost the flow
    run to this process: it is woken, has that long to find out and end (tasks/attempt.py), and is then killed.
    Raises UserError, or with `takeover_s` Transient, if the lock is not to be had.
    """
    run.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".lock").open("a+") as lock:
        began = time.monotonic()
        while not locked(lock):
            waited = time.monotonic() - began
            if not takeover_s:
                raise UserError("another process on this machine is at this very training",
                                where=f"training {run.name}", fix="Wait for it, or cancel it first.")
            if waited > takeover_s + KILL_WAIT_S:
                raise Transient("the process that had this training before still holds its lock",
                                where=f"training {run.name}", fix=f"Look for it: {holder_of(lock)}.")
            signal_holder(lock, signal.SIGCONT if waited < takeover_s else signal.SIGKILL)
            time.sleep(LOCK_POLL_S)
        lock.truncate(0)
        lock.write(f"{socket.gethostname()} {os.getpid()}")
        lock.flush()
        yield


def holder_of(lock: IO[str]) -> str:
    """Host and process id of whoever holds the lock, as it wrote them."""
    lock.seek(0)
    return lock.read()


def signal_holder(lock: IO[str], number: signal.Signals) -> None:
    """To the holder if it is a process of this machine; its ranks die with it (infra/orphan.py)."""
    host, _, pid = holder_of(lock).partition(" ")
    if host == socket.gethostname() and pid.isdigit():
        log.warning("%s to process %s, which lost this training", number.name, pid)
        with suppress(ProcessLookupError):
            os.kill(int(pid), number)
