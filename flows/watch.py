"""Look whether a training's data changed, without reading it, and tell it by the event `dataset.updated`.

In:   Parameters      Out: the event, which starts retrain/weekly; a run shown as Updated, Unchanged or Postponed
The first look at a source tells too. Dies half-way: told is noted after telling, so the next run tells again, and
retrain skips rows that it knows.
Run alone:
    from flows.watch import watch
    watch({"train_data": "s3://bucket/day=*/*.jsonl", "base_model": "models/llama", "destination": "acme/summarizer"})
On a schedule: anneal watch
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.states import Completed

from flows.parameters import Parameters, guarded
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.runs.attempt import attempt, cancelled
from tasks.watch import look, look_until_settled, note, noted, retraining, sources_of, was_refused

UPDATED = "dataset.updated"


@guarded
@flow(name="watch", flow_run_name="watch {training.destination}", persist_result=False)
def watch(training: Parameters) -> State[Any]:
    """Look whether the data changed, and tell it.

    Args:
        training: What is trained when its data changed.
    """
    settings, spec = Settings(), training.spec()
    store = Store(settings)
    with attempt(settings, store):
        before, sources = noted(store, spec), sources_of(spec)
        with get_client(sync_client=True) as client:
            told_last = None if before is None or was_refused(client, spec, before[1]) else before[0]
            seen = look(settings, sources)
            if seen == told_last:
                return Completed(name="Unchanged", message=f"{seen}, as told before.")
            settled = look_until_settled(settings, sources)
            if settled is None:
                return Completed(name="Postponed", message=f"Files are still being written ({seen} at first).")
            if settled == told_last:
                return Completed(name="Unchanged", message=f"{settled} again, as told before.")
            if other := retraining(client):
                return Completed(
                    name="Postponed", message=f"{settled}. {other!r} is under way; the next look tells it.")
            told = datetime.now(UTC)
            tell(client, spec, training.model_dump(mode="json"))
            note(store, spec, settled, told)
        was = f"before: {before[0]}" if before else "not looked at before"
        return Completed(name="Updated", message=f"{settled} ({was}). Told by the event {UPDATED}.")
    return cancelled()


def tell(client: SyncPrefectClient, spec: TrainingSpec, training: dict[str, Any]) -> None:
    """Send the event, and return once the server has it: `emit_event` would only queue it."""
    event = Event.model_validate({
        "event": UPDATED, "resource": {"prefect.resource.id": f"anneal.dataset.{spec.destination.replace('/', '-')}"},
        "payload": {"training": training}})
    client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
