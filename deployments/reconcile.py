"""Look after flow runs for as long as the stack is up: python -m deployments.reconcile

In:   a Prefect server, the store      Out: dead runs are scheduled again, or Failed with the reason
      (tasks/runs/recover.py); signed messages to the webhook (tasks/runs/webhooks.py)
It looks at once when a run starts, crashes or ends and when a worker starts, as the server's events tell; every few
seconds while anything runs, because a run whose worker died with it sends no event; and once a minute otherwise.
One at a time, by Prefect's limit `reconcile`: each machine of a team may have such a process.
On disk: <home>/logs/reconcile.beat, touched after every look, by which the keeper and `anneal status` see that it
works. A server that is away is asked again. Dies half-way: the next look does the rest.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.errors import AnnealError
from infra.redaction import redact_logs
from infra.settings import Settings
from infra.stack.services import beat_of
from infra.storage.store import Store
from tasks.launcher.gpu_slots import take_slots
from tasks.runs.cleanup import tidy
from tasks.runs.locks import locks_of
from tasks.runs.queries import RECOVERED, runs_in
from tasks.runs.recover import forget_looks, recover
from tasks.runs.start import client_of
from tasks.runs.webhooks import notify

NAME = "reconcile"
"""Of the service, and of the limit that only one look at a time holds."""
KEPT = timedelta(hours=1)
"""A look every few minutes at watched data would bury other runs in the UI."""
BUSY_S, IDLE_S, APART_S = 5.0, 60.0, 1.0
"""Between looks while anything runs, while nothing does, and at least."""
HOUSE_S, TIDY_S = 60.0, 3600.0
"""There may be thousands of notes to tidy."""
RETRIES = 2
"""Of a request. The client's own eight last for minutes; here the next look is the next try."""
AGAIN = "AwaitingRetry"
WATCHED = (*RECOVERED, "join")
WAKING = [*(f"prefect.flow-run.{state}" for state in (
    "Pending", "Running", "Crashed", "Completed", "Failed", "Cancelled")), "prefect.worker.started"]
"""Events after which it looks at once."""
LISTEN_AGAIN_S = 5.0
log = logging.getLogger(NAME)


class Due:
    """Whether it is time for something that is done now and then; at first it is."""

    def __init__(self, every_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._now, self._next = every_s, now, now()

    def __call__(self) -> bool:
        if self._now() < self._next:
            return False
        self._next = self._now() + self._every_s
        return True


class Reconciler:
    """Looks again and again; what a look cannot do, the next one does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._house, self._tidy = Due(HOUSE_S), Due(TIDY_S)

    def run(self, woken: threading.Event) -> None:
        """For ever."""
        beat = beat_of(self._settings, NAME)
        beat.parent.mkdir(parents=True, exist_ok=True)
        log.info("looking after runs")  # infra/stack/services.py waits for these words
        is_told = True
        while True:
            woken.clear()
            pause_s = self.look(is_told)
            beat.touch()
            time.sleep(APART_S)
            is_told = woken.wait(pause_s)

    def look(self, is_told: bool) -> float:
        """Look once; returns for how many seconds the next look may wait. `is_told`: something may have ended."""
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}), client_of(self._settings) as client:
                with ExitStack() as slot:
                    if not take_slots(slot, NAME, 1, 1):
                        return BUSY_S  # another machine's is at it
                    store = Store(self._settings)
                    self._find(client, store)
                    self._keep_house(client, store, is_told)
                return BUSY_S if under_way(client) else IDLE_S
        except (AnnealError, PrefectException, httpx.HTTPError, OSError) as error:
            log.warning("not looked, trying again: %s", error)
            return BUSY_S

    def _find(self, client: SyncPrefectClient, store: Store) -> None:
        """Find dead runs and let them go on."""
        done = recover(self._settings, client, store, WATCHED)
        for what, names in (("dead", done.crashed), ("started again", done.again), ("given up", done.given_up)):
            for name in names:
                log.warning("%s: %s", what, name)

    def _keep_house(self, client: SyncPrefectClient, store: Store, is_told: bool) -> None:
        """Tell the webhook what ended, and forget what ended long ago. Whatever is wrong with it, such as a webhook's
        secret that is none, the runs are looked after."""
        if not (self._house() or is_told):
            return
        try:
            forget_looks(client, KEPT)
            if self._tidy():
                log.info("notes of runs removed: %d", tidy(client, store, locks_of(self._settings)))
            for told in notify(self._settings, client, store):
                log.info("webhook: %s", told)
        except AnnealError as error:
            log.error("%s", error)


def under_way(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that would be started again, or have just been."""
    runs = runs_in(client, RECOVERED, StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED)
    return [run for run in runs
            if run.deployment_id and run.state and (run.state.type != StateType.SCHEDULED or run.state.name == AGAIN)]


def listen(settings: Settings, woken: threading.Event) -> None:
    """Set `woken` at each event of WAKING, for ever; runs on a thread of its own."""
    with client_of(settings):
        asyncio.run(_listen(woken))


async def _listen(woken: threading.Event) -> None:
    while True:
        try:
            async with get_events_subscriber(EventFilter(event=EventNameFilter(name=WAKING))) as events:
                woken.set()  # something may have happened while nobody listened
                async for _ in events:
                    woken.set()
        except Exception as error:  # noqa: BLE001  (whatever websockets raises: the server is away, and comes back)
            log.debug("no events error=%s", error)
        await asyncio.sleep(LISTEN_AGAIN_S)


def main() -> None:
    """Look and listen until told to stop."""
    redact_logs()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)  # Prefect has set it up
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    settings, woken = Settings(), threading.Event()
    threading.Thread(target=listen, args=(settings, woken), name="events", daemon=True).start()
    Reconciler(settings).run(woken)


if __name__ == "__main__":
    main()
