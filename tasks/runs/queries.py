"""What Prefect's server knows of flow runs: those in a state, when one was last heard of, which only looked at data.

In:   a Prefect server      Out: flow runs; nothing is changed
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventOccurredFilter, EventOrder, EventResourceFilter

LOOK_BACK = timedelta(days=7)
"""What crashed earlier is history; a stack that was down for a holiday goes on."""
PAGE = 200
REFUSED = "Deployment concurrency limit reached."
"""What Prefect says of a run that it cancelled because another one was under way."""
RECOVERED = ("finetune", "retrain", "predict")
"""Flows that are started again; the next scheduled run takes the place of any other."""
UNCHANGED, POSTPONED, UNSEEN = "Unchanged", "Postponed", "Unseen"
LOOKED = (UNCHANGED, POSTPONED, UNSEEN)
"""Names of the states in which a run of `anneal watch` ends that trains nothing; the next one looks again."""


def runs_in(
    client: SyncPrefectClient, flows: tuple[str, ...], *states: StateType, names: tuple[str, ...] = (),
    ended_after: datetime | None = None, ended_before: datetime | None = None,
) -> list[FlowRun]:
    """Runs of these flows that are in one of these states, those that ended last first; `names` are the states' own."""
    ended = FlowRunFilterEndTime(after_=ended_after, before_=ended_before) if ended_after or ended_before else None
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)),
                               name=FlowRunFilterStateName(any_=list(names)) if names else None)
    found: list[FlowRun] = []
    while len(found) % PAGE == 0:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
            flow_run_filter=FlowRunFilter(state=state, end_time=ended),
            sort=FlowRunSort.END_TIME_DESC, limit=PAGE, offset=len(found))
        found += page
        if not page:
            break
    return found


def last_sign(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """When the run was last heard of: its newest event, or its last change of state."""
    page = client.read_events(EventFilter(
        occurred=EventOccurredFilter(since=datetime.now(UTC) - LOOK_BACK), order=EventOrder.DESC,
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])), limit=1)
    assert run.state is not None
    return max([run.state.timestamp, *(event.occurred for event in page.events)])


def age_s(run: FlowRun) -> float:
    """Seconds since the run came into its state."""
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else 0.0


def other_retraining(client: SyncPrefectClient, destination: str, own: str) -> str:
    """Name of a retraining of the destination that is under way beside the run `own`; empty for none."""
    runs = runs_in(client, ("retrain",), StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
    return next((run.name for run in runs if run.deployment_id and str(run.id) != own
                 and run.parameters.get("training", {}).get("destination") == destination), "")


def only_looked(run: FlowRun) -> bool:
    """Whether a run of `anneal watch` found nothing to train on, or was not begun because too many were under way."""
    if run.state is None or not run.parameters.get("watch"):
        return False
    return run.state.name in LOOKED or (run.state.message == REFUSED and not run.run_count)
