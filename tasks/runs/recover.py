"""Find flow runs whose processes are gone, and start crashed ones again.

In:   a Prefect server, <store>/runs/*.json      Out: such runs are Crashed, then scheduled again, or Failed with why
Prefect by itself shows a run whose worker died with it as Running for ever, and never repeats a crashed one.
A run of this machine is dead when the kernel dropped its process's lock (tasks/runs/attempt.py). Any other is when its
signs of life stop: two looks, further apart than two signs, must see the same last one. The second look keeps runs
alive that were silent because the server was down.
Dies half-way: the next one goes on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Crashed, Failed

from infra.errors import AnnealError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.runs.attempt import RUNS, read_attempts
from tasks.runs.fence import ALIVE_S
from tasks.runs.locks import died_here
from tasks.runs.queries import LOOK_BACK, LOOKED, RECOVERED, REFUSED, age_s, last_sign, only_looked, runs_in

SILENT_S = ALIVE_S + 10
SECOND_LOOK_S = ALIVE_S + 10
PENDING_S = 300
"""A worker that took a run and then died leaves it pending; a slow machine needs a minute to start one."""
TAKEN = ("Pending", "Submitting")
"""Names of that state. A pod that waits for a GPU is InfrastructurePending, for as long as it takes."""
SAME_PLACES = 3
PAUSE = timedelta(minutes=1)
SETTLE_S = 5.0
"""A worker reports the same crash a second time within this time, once it has looked for hooks in a process of its
own."""
TELLS_S = 1
"""A worker tells within this time that a process of its own has ended."""
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Recovered:
    """What one pass did: names of flow runs."""

    crashed: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)


def recover(
    settings: Settings, client: SyncPrefectClient, store: Store, flows: tuple[str, ...], *,
    sleep: Callable[[float], None] = time.sleep,
) -> Recovered:
    """One pass over the runs of `flows`."""
    done = Recovered()
    # Those that wait for a second look do so after those that are surely dead.
    gone = dead(settings, client, flows)
    if gone:
        sleep(TELLS_S)
    for run in gone or silent(client, flows, sleep):
        now = client.read_flow_run(run.id).state
        if now is None or run.state is None or now.id != run.state.id:  # it ended meanwhile, or began
            continue
        over: State[None] = Crashed(message="Its process is gone: it gives no sign of life any more.")
        client.set_flow_run_state(run.id, over, force=True)
        done.crashed.append(run.name)
    since = datetime.now(UTC) - LOOK_BACK
    crashed = runs_in(client, RECOVERED, StateType.CRASHED, ended_after=since)
    if rest_s := max((unsettled_s(run) for run in crashed), default=0.0):
        sleep(min(rest_s, 2 * SETTLE_S))  # the server's clock may be ahead
        crashed = runs_in(client, RECOVERED, StateType.CRASHED, ended_after=since)
    for run in crashed:
        if run.deployment_id is None or unsettled_s(run):  # a command is started again by whoever ran it
            continue
        try:
            places = crashed_at(store, run)
        except AnnealError as error:
            log.warning("%s waits for the next look, how far it came is not known: %s", run.name, error)
            continue
        if is_stuck(places):
            client.set_flow_run_state(run.id, Failed(message=given_up(places)), force=True)
            store.discard(crashes_of(run))  # whoever presses Retry has all tries again
            done.given_up.append(run.name)
        else:
            due = datetime.now(UTC) + pause_after(places)
            again: State[None] = AwaitingRetry(
                scheduled_time=due, message="Its process died; it goes on where it was.")
            client.set_flow_run_state(run.id, again)
            done.again.append(run.name)
    for run in pushed_out(client, since):
        client.set_flow_run_state(run.id, AwaitingRetry(message="The one that took its place has ended."))
        done.again.append(run.name)
    return done


def pushed_out(client: SyncPrefectClient, since: datetime) -> list[FlowRun]:
    """The next retraining that had begun, crashed, and was cancelled since another one had its place by then."""
    runs = [run for run in runs_in(client, ("retrain",), StateType.CANCELLED, ended_after=since)
            if run.run_count and run.state and run.state.message == REFUSED]
    under_way = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
    return runs[-1:] if runs and not runs_in(client, ("retrain",), *under_way) else []


def forget_looks(client: SyncPrefectClient, kept: timedelta) -> None:
    """Delete runs of `anneal watch` that trained nothing and ended longer ago than that."""
    ended = (StateType.COMPLETED, StateType.CANCELLED, StateType.FAILED)
    for run in runs_in(client, ("retrain",), *ended, names=(*LOOKED, "Cancelled"),
                       ended_before=datetime.now(UTC) - kept):
        if only_looked(run):
            client.delete_flow_run(run.id)


def dead(settings: Settings, client: SyncPrefectClient, flows: tuple[str, ...]) -> list[FlowRun]:
    """Runs of workers that say they run, whose process was one of this machine. A command gives its lock back before it
    tells how it ended."""
    return [run for run in runs_in(client, flows, StateType.RUNNING)
            if run.deployment_id is not None and died_here(settings, run)]


def silent(
    client: SyncPrefectClient, flows: tuple[str, ...], sleep: Callable[[float], None],
) -> list[FlowRun]:
    """Runs that say they run, or are about to, and of which nothing is heard."""
    limits = {"Running": SILENT_S, **dict.fromkeys(TAKEN, PENDING_S)}

    def suspects() -> dict[object, tuple[FlowRun, datetime]]:
        runs = runs_in(client, flows, StateType.RUNNING, StateType.PENDING)
        found = {run.id: (run, last_sign(client, run)) for run in runs if run.state and run.state.name in limits}
        now = datetime.now(UTC)
        return {
            identity: (run, sign) for identity, (run, sign) in found.items()
            if run.state and (now - sign).total_seconds() > limits[run.state.name or ""]}

    first = suspects()
    if not first:
        return []
    sleep(SECOND_LOOK_S)
    return [run for identity, (run, sign) in suspects().items() if identity in first and first[identity][1] == sign]


def unsettled_s(run: FlowRun) -> float:
    """For how many seconds this crash may be reported once more, which would be taken for one of the next attempt."""
    return max(0.0, SETTLE_S - age_s(run))


def crashed_at(store: Store, run: FlowRun) -> list[str]:
    """How far the run had come at each of its crashes, this one noted now, and once. Raises AnnealError.

    Also a run that dies before it runs, in a pod that cannot start or a worker that lacks a package, is counted so.
    """
    attempts = read_attempts(store, run.id)
    newest = attempts[max(attempts, key=int)] if attempts else ""
    noted, crash = _noted(store, run), str(run.state.id) if run.state else ""
    if crash and noted and noted[-1][0] == crash:  # a look died before it could start the run again
        return [place for _, place in noted]
    noted.append((crash, newest))
    store.write(crashes_of(run), json.dumps(noted))
    return [place for _, place in noted]


def crashes_of(run: FlowRun) -> str:
    """Where a run's crashes stand in the store."""
    return f"{RUNS}/{run.id}.crashes.json"


def _noted(store: Store, run: FlowRun) -> list[tuple[str, str]]:
    """(state, place) of each crash so far. A damaged note is none: others wait for this look."""
    try:
        return [(str(crash), str(place)) for crash, place in json.loads(store.read(crashes_of(run)) or "[]")]
    except (TypeError, ValueError):
        return []


def pause_after(places: list[str]) -> timedelta:
    """How long to wait before the next try: a moment ago it came no further, what it needs may come back."""
    return PAUSE if len(places) > 1 and places[-1] == places[-2] else timedelta(0)


def is_stuck(places: list[str]) -> bool:
    """Whether the last crashes were all at the same place."""
    return len(places) >= SAME_PLACES and len(set(places[-SAME_PLACES:])) == 1


def given_up(places: list[str]) -> str:
    """Why a run is not started again."""
    return (f"{SAME_PLACES} attempts in a row ended in a crash and came no further than: {places[-1] or 'nothing'}. "
            "Look at the log of the last one; a Retry in this page goes on from there.")
