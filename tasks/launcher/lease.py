"""A lease of a concurrency limit's slots: taken, kept, and given back, also those of processes that died.

In:   a limit, a number of slots      Out: a lease, renewed for as long as it is held
On disk meanwhile: <folder>/<lease id>, locked by its holder, whose host stands in it
Prefect's own `concurrency()` does not tell the lease's id, so that the slots of a killed training could not be given
back before their minute is over. Dies half-way: the kernel drops the file's lock, and whoever wants slots next gives
the dead one's back at once; without that the server does so within a minute or two.
"""

from __future__ import annotations

import contextvars
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

from infra.errors import Transient
from infra.files import locked
from infra.settings import Settings

LEASE_S = 60
"""The shortest that Prefect takes."""
RENEW_S = 20
RENEWAL_END_S = 5
POLL_S = 1.0
BUSY_DELAYS_S = (0.05, 0.1, 0.2)
"""Waits before a server that answers 503 is asked again: on SQLite it does so when another write came between its
reading and its writing, often that of the task that has just ended. Prefect's client waits 2 s, then twice as long each
time, also after its last try."""
LOST = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
"""What the server says of a lease that is over."""
log = logging.getLogger(__name__)


def leases_of(settings: Settings) -> Path:
    """The folder in which this home's leases are noted."""
    return settings.home_path / "leases"


@contextmanager
def if_free(client: SyncPrefectClient, limit: str, folder: Path, patience_s: float = 0) -> Iterator[bool]:
    """Hold the only slot of a limit; False, holding nothing, where another still has it after that time."""
    make(client, limit, 1)
    deadline = time.monotonic() + patience_s
    with hasty_client() as hasty:
        while True:
            give_back_of_the_dead(client, folder)
            lease = take(client, hasty, limit, 1)
            if lease is not None or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
    if lease is None:
        yield False
        return
    with held_lease(client, limit, 1, lease, folder):
        yield True


def make(client: SyncPrefectClient, limit: str, count: int) -> GlobalConcurrencyLimitResponse:
    """Create the limit with that many slots unless it is there; returns it."""
    try:
        return client.read_global_concurrency_limit_by_name(limit)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=count))
        return client.read_global_concurrency_limit_by_name(limit)


def take(client: SyncPrefectClient, hasty: SyncPrefectClient, limit: str, count: int) -> UUID | None:
    """A lease of that many slots if they are free. A server that is busy for a moment is asked again soon, by `hasty`;
    one that stays busy or is away by `client`, with its patience."""
    for wait_s in BUSY_DELAYS_S:
        try:
            return _take(hasty, limit, count)
        except _Busy:
            time.sleep(wait_s)
        except httpx.ConnectError:
            break
    return _take(client, limit, count)


def hasty_client() -> SyncPrefectClient:
    """A client to which a busy server is an error, not one to wait for."""
    return get_client(sync_client=True, httpx_settings={"event_hooks": {"response": [_raise_if_busy]}})


class _Busy(Exception):
    pass


def _raise_if_busy(response: httpx.Response) -> None:
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        raise _Busy


def _take(client: SyncPrefectClient, limit: str, count: int) -> UUID | None:
    try:
        answer = client.increment_concurrency_slots_with_lease([limit], count, "concurrency", LEASE_S)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == HTTPStatus.LOCKED:
            return None
        raise
    return UUID(answer.json()["lease_id"])


def give_back(client: SyncPrefectClient, lease: UUID) -> None:
    """Free its slots; one that the server does not know any more is over already."""
    try:
        client.release_concurrency_slots_with_lease(lease)
    except (PrefectException, httpx.HTTPError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in LOST:
            return
        log.warning("slots not given back, their lease ends in %d s: %s", LEASE_S, error)


def give_back_of_the_dead(client: SyncPrefectClient, folder: Path) -> None:
    """Free the slots of processes of this machine that died with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for note in folder.iterdir():
        try:
            with note.open("r+") as file:
                if file.read() == socket.gethostname() and locked(file):
                    log.info("slots of a process that died are given back")
                    give_back(client, UUID(note.name))
                    note.unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # its holder has just ended well, or it is no note
            log.debug("not looked at: %s (%s)", note, error)


@contextmanager
def held_lease(client: SyncPrefectClient, limit: str, count: int, lease: UUID, folder: Path) -> Iterator[None]:
    """Keep a lease that was taken, and give it back. Raises Transient where nothing can be written."""
    try:
        note = Note(folder, lease)
    except OSError as error:
        give_back(client, lease)
        raise Transient(f"a lease cannot be noted ({error})", where=str(folder)) from error
    renewal = Renewal(limit, count, lease, note)
    renewal.start()
    try:
        yield
    finally:
        renewal.over.set()
        renewal.join(RENEWAL_END_S)
        give_back(client, renewal.lease)
        note.remove()


class Note:
    """A file named like a lease that is locked for as long as its holder lives; the host is written once it is."""

    def __init__(self, folder: Path, lease: UUID) -> None:
        self._path = folder / str(lease)
        self._file = self._path.open("w")
        assert locked(self._file), "whoever else looks at it finds no host in it and leaves it alone"
        self._file.write(socket.gethostname())
        self._file.flush()

    def rename(self, lease: UUID) -> None:
        """It stands for another lease from here on."""
        self._path = self._path.rename(self._path.with_name(str(lease)))

    def remove(self) -> None:
        """The holder has ended."""
        self._path.unlink(missing_ok=True)
        self._file.close()


class Renewal(threading.Thread):
    """Renews a lease until it is over; one that an outage of the server outlasted is taken anew once it can be.

    A renewal that fails must not end a training of hours.
    """

    def __init__(self, limit: str, count: int, lease: UUID, note: Note) -> None:
        super().__init__(name=f"lease of {limit}", daemon=True)
        self._limit, self._count, self._note, self._said = limit, count, note, False
        self._context = contextvars.copy_context()
        self.lease = lease
        self.over = threading.Event()

    def run(self) -> None:
        """Until `over`, in the context of the run that holds the slots: its log gets what is said here."""
        self._context.run(self._renew)

    def _renew(self) -> None:
        with get_client(sync_client=True) as client:
            while not self.over.wait(RENEW_S):
                try:
                    self._once(client)
                except (PrefectException, httpx.HTTPError) as error:
                    log.debug("lease not renewed: %s", error)

    def _once(self, client: SyncPrefectClient) -> None:
        try:
            client.renew_concurrency_lease(self.lease, LEASE_S)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in LOST:
                raise
            self._take_again(client)

    def _take_again(self, client: SyncPrefectClient) -> None:
        with hasty_client() as hasty:
            lease = take(client, hasty, self._limit, self._count)
        if lease is None:
            if not self._said:
                log.warning("the lease of %s ran out and its slots are not free; the work goes on", self._limit)
            self._said = True
        elif self.over.is_set():  # the holder ended meanwhile
            give_back(client, lease)
        else:
            self.lease = lease
            self._note.rename(lease)
