"""Remove what was noted about runs that ended long ago: how far they came, and who was told.

In:   <store>/runs/*, <store>/notifications/*, <home>/runs/*      Out: fewer of them
Notes of runs that this Prefect server does not know are left: they may be another server's, with the same store.
Dies half-way: the next one goes on.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from infra.storage.store import Store
from tasks.runs import webhooks
from tasks.runs.attempt import RUNS
from tasks.runs.queries import LOOK_BACK

KEPT = max(webhooks.KEPT, 2 * LOOK_BACK)
IDENTITY = len(str(UUID(int=0)))
AT_A_TIME = 200


def tidy(client: SyncPrefectClient, store: Store, locks: Path) -> int:
    """Remove them, and what is in the folder of locks; returns how many notes."""
    notes = [name for folder in (RUNS, webhooks.NOTIFICATIONS) for name in store.names(folder)]
    runs = {name: run for name in notes if (run := run_in(name.rsplit("/", 1)[-1]))}
    held = {path: run for path in locks.glob("*") if (run := run_in(path.name))}
    known = sorted({*runs.values(), *held.values()}, key=str)
    over: set[UUID] = set()
    for start in range(0, len(known), AT_A_TIME):
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=known[start:start + AT_A_TIME])), limit=AT_A_TIME)
        over |= {run.id for run in found if run.end_time and datetime.now(UTC) - run.end_time > KEPT}
    gone = [name for name, run in runs.items() if run in over]
    for name in gone:
        store.discard(name)
    for path in (path for path, run in held.items() if run in over):
        path.unlink(missing_ok=True)
    return len(gone)


def run_in(name: str) -> UUID | None:
    """The run that a note or a lock is named after; None for a file that somebody else put there."""
    try:
        return UUID(name[:IDENTITY])
    except ValueError:
        return None
