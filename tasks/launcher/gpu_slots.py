"""GPU slots: a concurrency limit in Prefect that makes trainings on one machine wait for each other.

In:   the running step's ranks      Out: that many slots of the limit `gpu-<host>`, and devices of its own
On disk meanwhile: <home>/leases/
The slots are leases (tasks/launcher/lease.py); kept in files by the server (infra/stack/services.py), they survive its
restart. The limit shows who has what; which devices those are, and trainings that no server knows of, is the matter of
tasks/launcher/devices.py. A machine without GPUs has one slot. Dies half-way: the next one who wants slots gets them.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL

from infra.errors import Transient, UserError
from infra.settings import Settings
from tasks.launcher.devices import gpus, held
from tasks.launcher.gpu_locks import lock_folder
from tasks.launcher.lease import give_back_of_the_dead, hasty_client, held_lease, leases_of, make, take

POLL_S = 2.0
NO_LIMIT = "none"
log = logging.getLogger(__name__)


@contextmanager
def hold(settings: Settings, ranks: int, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait for a GPU for each rank and keep others off them. Raises Transient when Prefect does not answer, and what
    `look` raises while it waits."""
    folder = lock_folder(settings.gpu_locks)
    with leased(settings, ranks if gpus() else 1, look), held(ranks if gpus() else 0, folder, look):
        yield


def limit_of(settings: Settings) -> str:
    """The name of this machine's concurrency limit, or an empty string for none."""
    name = settings.gpu_limit or f"gpu-{socket.gethostname()}"
    return "" if name == NO_LIMIT else name


def slots() -> int:
    """How many slots this machine has."""
    return len(gpus()) or 1


@contextmanager
def leased(settings: Settings, count: int, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold slots of the limit; what the user set it to in Prefect's UI stays."""
    limit, folder = limit_of(settings), leases_of(settings)
    if not limit or not PREFECT_API_URL.value():
        yield
        return
    with get_client(sync_client=True) as client:
        try:
            with hasty_client() as hasty:
                lease = wait_for_lease(client, hasty, limit, count, folder, look)
        except (PrefectException, httpx.HTTPError) as error:
            raise Transient(f"no GPU slot to be had ({error})", where=f"concurrency limit {limit}") from error
        with held_lease(client, limit, count, lease, folder):
            yield


def wait_for_lease(
    client: SyncPrefectClient, hasty: SyncPrefectClient, limit: str, count: int, folder: Path,
    look: Callable[[], None],
) -> UUID:
    """Slots of the limit, however long it takes. Raises UserError where it has fewer, and what `look` raises."""
    said = False
    while True:
        found = make(client, limit, slots())
        if found.limit < count:
            raise UserError(f"it has {found.limit} slots, and the training needs {count}",
                            where=f"concurrency limit {limit}", fix="Raise it in Prefect's UI, or lower num_ranks.")
        give_back_of_the_dead(client, folder)
        if (lease := take(client, hasty, limit, count)) is not None:
            return lease
        if not said:
            log.info("waiting for %d slots of the concurrency limit %s: %d of %d are taken", count, limit,
                     found.active_slots, found.limit)
            said = True
        look()
        time.sleep(POLL_S)
