"""GPU slots: a concurrency limit in Prefect that makes trainings on one machine wait for each other.

In:   the running step's ranks      Out: that many slots of the limit `gpu-<host>`, and devices of its own
The slots are leases; kept in files by the server (infra/services.py), they survive its restart. The limit shows who
has what; which devices those are, and trainings that no server knows of, is the matter of tasks/gpus.py. A machine
without GPUs has one slot. Dies half-way: the server takes the lease back within a minute or two.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL

from infra.errors import Transient, UserError
from infra.settings import Settings
from tasks.gpus import gpus, held

LEASE_S = 60  # the shortest that Prefect takes: a crashed training starts again once its old lease is over
NO_LIMIT = "none"
log = logging.getLogger(__name__)


@contextmanager
def hold(settings: Settings, ranks: int) -> Iterator[None]:
    """Wait for a GPU for each rank and keep others off them. Raises Transient when Prefect does not answer."""
    with leased(limit_of(settings), ranks if gpus() else 1), held(
            ranks if gpus() else 0, settings.gpu_locks):
        yield


def limit_of(settings: Settings) -> str:
    """The name of this machine's concurrency limit, or an empty string for none."""
    name = settings.gpu_limit or f"gpu-{socket.gethostname()}"
    return "" if name == NO_LIMIT else name


def slots() -> int:
    """How many slots this machine has."""
    return len(gpus()) or 1


@contextmanager
def leased(limit: str, count: int) -> Iterator[None]:
    """Hold slots of the limit; what the user set it to in Prefect's UI stays."""
    if not limit or not PREFECT_API_URL.value():
        yield
        return
    with ExitStack() as stack:
        try:
            found = make(limit)
            if found.limit < count:
                raise UserError(f"it has {found.limit} slots, and the training needs {count}",
                                where=f"concurrency limit {limit}", fix="Raise it in Prefect's UI, or lower num_ranks.")
            if found.active_slots + count > found.limit:
                log.info("waiting for %d slots of the concurrency limit %s: %d of %d are taken", count, limit,
                         found.active_slots, found.limit)
            # A renewal that fails must not end a training of hours: strict alone would let it.
            stack.enter_context(concurrency(
                limit, occupy=count, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False))
        except (PrefectException, httpx.HTTPError) as error:
            raise Transient(f"no GPU slot to be had ({error})", where=f"concurrency limit {limit}") from error
        given = stack.pop_all()
        try:
            yield
        finally:
            try:
                given.close()
            except (PrefectException, httpx.HTTPError) as error:
                log.warning("GPU slots not given back, their lease ends in %d s: %s", LEASE_S, error)


def make(limit: str) -> GlobalConcurrencyLimitResponse:
    """Create the limit unless it is there; returns it."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=slots()))
            return client.read_global_concurrency_limit_by_name(limit)

