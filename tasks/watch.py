"""See from outside whether data changed: names, sizes and marks of its files, never their content.

In:   the sources of a training, watched/<key>.json in the store     Out: a `Look`; the note of the one that was told
What is still being written is looked at again until two looks, some seconds apart, are the same.
Dies half-way: nothing is noted before it was told, so the next one tells it again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from infra.errors import DataError
from infra.files import digest_of
from infra.records import Record
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.clouds import in_object_store
from infra.storage.https import headers_of, without_secrets
from infra.storage.store import Store
from tasks.data.sources import Found, find_shards
from tasks.runs.recover import REFUSED

SETTLE_S = 10.0
LOOKS = 30
"""At most, for one that goes on changing; the next run looks again."""
CLOCKS = timedelta(seconds=20)
"""That the server's may be behind."""
PAGE = 200
ONGOING = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


@dataclass(frozen=True, kw_only=True)
class Look(Record):
    """What the sources hold, as it is seen from outside."""

    fingerprint: str
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} file{'' if self.files == 1 else 's'}, {self.bytes} bytes"


def sources_of(spec: TrainingSpec) -> list[str]:
    """Where the rows of a training come from."""
    return [source for source in (spec.train_data, spec.validation_data) if source]


def look(settings: Settings, sources: Iterable[str]) -> Look:
    """List the files. Raises DataError for a source that is not there or cannot be watched."""
    seen = {source: [_marked(settings, one) for one in find_shards(settings, source)] for source in sources}
    files = [one for found in seen.values() for one in found]
    listed = {source: [(one.name, one.bytes, one.mark) for one in found] for source, found in seen.items()}
    return Look(fingerprint=digest_of(listed), files=len(files), bytes=sum(one.bytes or 0 for one in files))


def look_until_settled(
    settings: Settings, sources: list[str], sleep: Callable[[float], None] = time.sleep,
) -> Look | None:
    """What two looks in a row saw; None if it goes on changing."""
    last = look(settings, sources)
    for _ in range(LOOKS):
        sleep(SETTLE_S)
        seen = look(settings, sources)
        if seen == last:
            return seen
        last = seen
    return None


def noted(store: Store, spec: TrainingSpec) -> tuple[Look, datetime] | None:
    """The look that was told last, and when; None if none was."""
    values = json.loads(store.read(name_of(spec)) or "{}")
    return (Look.of(values), datetime.fromisoformat(values["told"])) if values else None


def note(store: Store, spec: TrainingSpec, seen: Look, told: datetime) -> None:
    """Remember that it was told."""
    about = {"destination": spec.destination, "sources": [without_secrets(source) for source in sources_of(spec)]}
    store.write(name_of(spec), json.dumps({**seen.to_json(), "told": told.isoformat(), **about}, indent=1))


def name_of(spec: TrainingSpec) -> str:
    """Where the note stands in the store."""
    return f"watched/{digest_of([spec.destination, *sources_of(spec)])[:32]}.json"


def retraining(client: SyncPrefectClient) -> str:
    """Name of a retraining that Prefect has under way, or starts next; empty for none. It would cancel another one."""
    due = FlowRunFilter(next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC)),
                        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    under_way = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(ONGOING))))
    found = [run for runs in (under_way, due) for run in _retrainings(client, runs) if run.deployment_id]
    return found[0].name if found else ""


def was_refused(client: SyncPrefectClient, spec: TrainingSpec, told: datetime) -> bool:
    """Whether the retraining that was asked for then was cancelled, because another one was under way."""
    later = FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=told - CLOCKS))
    own = [run for run in _retrainings(client, later)
           if run.parameters.get("training", {}).get("destination") == spec.destination]
    return bool(own) and all(run.state is not None and run.state.message == REFUSED for run in own)


def _retrainings(client: SyncPrefectClient, runs: FlowRunFilter) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])), flow_run_filter=runs, limit=PAGE,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC)


def _marked(settings: Settings, one: Found) -> Found:
    """The same with a mark, where the listing gave none."""
    if one.mark:
        return one
    headers = {} if in_object_store(one.address) else headers_of(one.address, settings)
    mark = headers.get("etag") or headers.get("last-modified")
    if not mark:
        raise DataError("the server tells neither ETag nor Last-Modified", where=one.name,
                        fix="It cannot be watched; put a schedule on retrain/weekly, which reads the data.")
    size = headers.get("content-length", "")
    return dataclasses.replace(one, mark=mark, bytes=int(size) if size.isdigit() else None)
