"""Every minute, and when a run crashes or a worker starts: find runs whose processes died and let them go on; tell the
webhook how runs ended.

In:   a Prefect server, the store      Out: dead runs are scheduled again, or Failed with the reason
      (tasks/runs/recover.py); signed messages (tasks/runs/webhooks.py)
While anything runs it looks every few seconds, until the run of the next minute takes over: a run that crashes
meanwhile has not to wait for another process to start, and one without a worker (it outlived the one that started it)
not for the next minute.
One at a time, by the limit `reconcile`: Prefect's own limit of a deployment is held for five minutes by a run that
died, this one for one. Dies half-way: the next run does the rest.
Run alone: python -m flows.reconcile
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_run_logger

from infra.errors import AnnealError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.launcher.gpu_slots import take_slots
from tasks.runs.cleanup import tidy
from tasks.runs.locks import locks_of
from tasks.runs.queries import RECOVERED, runs_in
from tasks.runs.recover import forget, forget_looks, recover
from tasks.runs.webhooks import notify

KEPT = timedelta(hours=1)
"""A run a minute, or a look every few, would bury the others in the UI."""
TIDY_MINUTE = 17
"""Of each hour: there may be thousands of notes."""
LOOKS_S, EVERY_S = 55.0, 5.0
"""For so long after its start it looks so often."""
PATIENCE_S = 15.0
"""The run of the next minute waits so long for this one's end, and takes over: no crash falls in between."""
LIMIT_S = 300
"""A request that hangs, or is answered with 500 again and again, must not keep the next one out."""
LIMIT = "reconcile"
AGAIN = "AwaitingRetry"
WATCHED = (*RECOVERED, "reconcile", "join")


@flow(name="reconcile", flow_run_name="reconcile", persist_result=False, timeout_seconds=LIMIT_S)
def reconcile() -> None:
    """Find runs whose processes died and let them go on; tell the webhook how runs ended."""
    settings, log = Settings(), get_run_logger()
    with get_client(sync_client=True) as client, ExitStack() as slot:
        if take_slots(slot, LIMIT, 1, 1, PATIENCE_S):
            began, failed = time.monotonic(), None
            store = Store(settings)
            find(settings, client, store)
            try:
                keep_house(settings, client, store)
            except AnnealError as error:  # such as a webhook's secret that is none: told once the runs are looked after
                failed = error
            while_it_lasts(
                lambda: find(settings, client, store), lambda: under_way(client), began)
            if failed:
                raise failed
        else:
            log.info("another run is at it")


def while_it_lasts(
    again: Callable[[], None], lasting: Callable[[], list[FlowRun]], began: float,
    sleep: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic,
) -> None:
    """Do it again every EVERY_S, as long as there are any such runs, until LOOKS_S after `began`."""
    while lasting() and now() - began < LOOKS_S:
        sleep(EVERY_S)
        again()


def under_way(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that would be started again, or have just been."""
    runs = runs_in(client, RECOVERED, StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED)
    return [run for run in runs
            if run.deployment_id and run.state and (run.state.type != StateType.SCHEDULED or run.state.name == AGAIN)]


def find(settings: Settings, client: SyncPrefectClient, store: Store) -> None:
    """Find dead runs and let them go on."""
    done = recover(settings, client, store, WATCHED, except_run=UUID(runtime.flow_run.id))
    for what, names in (("dead", done.crashed), ("started again", done.again), ("given up", done.given_up)):
        for name in names:
            get_run_logger().warning("%s: %s", what, name)


def keep_house(settings: Settings, client: SyncPrefectClient, store: Store) -> None:
    """Forget what ended long ago, and tell the webhook what ended. Raises AnnealError."""
    log = get_run_logger()
    forget(client, "reconcile", KEPT)
    forget_looks(client, KEPT)
    if datetime.now(UTC).minute == TIDY_MINUTE:
        log.info("notes of runs removed: %d", tidy(client, store, locks_of(settings)))
    for told in notify(settings, client, store):
        log.info("webhook: %s", told)


if __name__ == "__main__":
    reconcile()
