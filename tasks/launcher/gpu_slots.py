"""GPU slots: a concurrency limit in Prefect that makes trainings on one machine wait for each other.

In:   the running step's ranks      Out: that many slots of the limit `gpu-<host>`, and devices of its own
The limit shows who has what; which devices those are, and trainings that no server knows of, is the matter of
tasks/launcher/devices.py. A machine without GPUs has one slot. The server keeps leases in files
(infra/stack/services.py), so they survive its restart. Dies half-way: the server frees the slots of a killed process
LEASE_S after its last renewal.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL

from infra.errors import Transient, UserError
from infra.settings import Settings
from tasks.launcher.devices import gpus, held
from tasks.launcher.gpu_locks import lock_folder
from tasks.runs.step_times import waiting

LEASE_S = 60
"""The shortest that Prefect takes."""
POLL_S, TAKE_S = 2.0, 30.0
NO_LIMIT = "none"
log = logging.getLogger(__name__)


@contextmanager
def hold(settings: Settings, ranks: int, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait for a GPU for each rank and keep others off them. Raises Transient when Prefect does not answer, and what
    `look` raises while it waits."""
    folder = lock_folder(settings.gpu_locks)
    with ExitStack() as kept:
        with waiting():
            kept.enter_context(gpu_slots(settings, ranks if gpus() else 1, look))
            kept.enter_context(held(ranks if gpus() else 0, folder, look))
        yield


def limit_of(settings: Settings) -> str:
    """The name of this machine's concurrency limit, or an empty string for none."""
    name = settings.gpu_limit or f"gpu-{socket.gethostname()}"
    return "" if name == NO_LIMIT else name


def slots() -> int:
    """How many slots this machine has."""
    return len(gpus()) or 1


@contextmanager
def gpu_slots(settings: Settings, count: int, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold slots of the limit, however long it takes to get them; what the user set it to in Prefect's UI stays.

    Raises UserError where the limit has fewer slots, Transient when Prefect does not answer, and what `look` raises.
    """
    limit = limit_of(settings)
    if not limit or not PREFECT_API_URL.value():
        yield
        return
    with ExitStack() as taken:
        said = False
        while not take_slots(taken, limit, count, slots()):
            if not said:
                log.info("waiting for %d slots of the concurrency limit %s", count, limit)
                said = True
            look()
            time.sleep(POLL_S)
        yield


def take_slots(taken: ExitStack, limit: str, count: int, of: int, patience_s: float = 0) -> bool:
    """Take slots of a limit, made with `of` slots if it is not there, for as long as `taken` is open; False if they are
    not free within `patience_s`.

    The limit is looked at first: Prefect logs an error for each try that times out. A training whose lease cannot be
    renewed goes on: the locks of its GPUs are its own (tasks/launcher/gpu_locks.py).

    Raises UserError where the limit has fewer slots, Transient when Prefect does not answer.
    """
    deadline = time.monotonic() + patience_s
    try:
        with get_client(sync_client=True) as client:
            while True:
                found = make_limit(client, limit, of)
                if found.limit < count:
                    raise UserError(f"it has {found.limit} slots, and the training needs {count}",
                                    where=f"concurrency limit {limit}",
                                    fix="Raise it in Prefect's UI, or lower num_ranks.")
                if found.active_slots + count <= found.limit:
                    with suppress(TimeoutError):  # another one was faster
                        taken.enter_context(concurrency(
                            limit, count, timeout_seconds=TAKE_S, lease_duration=LEASE_S, strict=True,
                            raise_on_lease_renewal_failure=False))
                        return True
                if time.monotonic() >= deadline:
                    return False
                time.sleep(POLL_S)
    except (PrefectException, httpx.HTTPError) as error:
        raise Transient(f"no slot to be had ({error})", where=f"concurrency limit {limit}") from error


def make_limit(client: SyncPrefectClient, limit: str, count: int) -> GlobalConcurrencyLimitResponse:
    """Create the limit with that many slots unless it is there; returns it."""
    try:
        return client.read_global_concurrency_limit_by_name(limit)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=count))
        return client.read_global_concurrency_limit_by_name(limit)
