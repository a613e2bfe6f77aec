"""One process at a time, on this machine or on all that share the folder of the lock.

In:   the path of a lock file      Out: the lock; host and pid of its holder stand in the file
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
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from infra.errors import Transient, UserError, from_os_error
from infra.files import lock_file, try_lock
from infra.settings import Settings

LOCK_POLL_S = 2.0
KILL_WAIT_S = 5.0
log = logging.getLogger(__name__)


@contextmanager
def exclusive_lock(lock: Path, what: str, *, takeover_s: float = 0, note: str = "") -> Iterator[None]:
    """Hold the lock. With `takeover_s` its holder has lost its work to this process: it is woken, has that long to find
    out and end (tasks/runs/attempt.py), and is then killed if it is a process of this machine.

    `note`: words that stand in the file after host and pid. Raises UserError, or with `takeover_s` Transient, if the
    lock is not to be had; as of from_os_error if nothing can be written.
    """
    with _opened(lock) as file:
        began = time.monotonic()
        while not try_lock(file):
            waited = time.monotonic() - began
            if not takeover_s:
                raise UserError("another process is at it", where=what, fix=f"Wait for it ({holder_of(file)}), "
                                "or cancel it first.")
            if waited > takeover_s + KILL_WAIT_S:
                raise Transient(f"{holder_of(file)} had it before and still holds its lock", where=what,
                                fix="Look for that process.")
            signal_holder(file, signal.SIGCONT if waited < takeover_s else signal.SIGKILL)
            time.sleep(LOCK_POLL_S)
        try:
            os.ftruncate(file.fileno(), 0)
            # Not through the file's buffer: where the disk is full, that would fail again when it is closed.
            os.write(file.fileno(), f"{socket.gethostname()} {os.getpid()} {note}".rstrip().encode())
        except OSError as error:
            raise from_os_error(error, str(lock)) from error
        yield


def _opened(lock: Path) -> IO[str]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock_file(lock)
    except OSError as error:
        raise from_os_error(error, str(lock)) from error


def died_with(lock: Path, note: str) -> bool:
    """Whether a process of this machine held the lock with that note and is no more: the kernel dropped it.

    False where that cannot be told, of another machine or without a lock file.
    """
    try:
        with lock.open("r+") as file:
            host, _, *words = holder_of(file).split(" ")
            return host == socket.gethostname() and words[:1] == [note] and try_lock(file)
    except (FileNotFoundError, ValueError):
        return False


def holder_of(lock: IO[str]) -> str:
    """Host, process id and note of whoever holds the lock, as it wrote them."""
    lock.seek(0)
    return lock.read()


def signal_holder(lock: IO[str], number: signal.Signals) -> None:
    """To the holder if it is a process of this machine; its ranks die with it (infra/parent_death.py)."""
    host, _, rest = holder_of(lock).partition(" ")
    pid = rest.partition(" ")[0]
    if host == socket.gethostname() and pid.isdecimal():
        log.warning("%s to process %s, which lost its run", number.name, pid)
        with suppress(ProcessLookupError):
            os.kill(int(pid), number)


def locks_of(settings: Settings) -> Path:
    """Where this machine keeps the locks of its flow runs."""
    return settings.home_path / "runs"


def lock_of(settings: Settings, run: UUID) -> Path:
    """The lock that the process of a flow run holds, with the attempt's number in it."""
    return locks_of(settings) / f"{run}.lock"


def died_here(settings: Settings, run: FlowRun) -> bool:
    """Whether the process of a run's newest attempt was one of this machine, and is no more."""
    return died_with(lock_of(settings, run.id), str(run.run_count))
