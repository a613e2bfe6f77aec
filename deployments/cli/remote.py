"""Start a training on a work pool and watch it: what `anneal train --remote` does.

In:   a spec                       Out: a flow run of finetune/finetune; its log lines on stderr while it runs
The run belongs to the worker. This process only watches: Ctrl-C ends the watching, not the run.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import PrefectException

from deployments.cli.console import Answer, links_of, table
from deployments.prefect_setup.apply import find
from flows.parameters import Parameters
from infra.errors import Broken, Transient, UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.addresses import form_of
from tasks.data.sources import MAGIC
from tasks.runs.start import run_page, start_run

DEPLOYMENT = "finetune/finetune"
POLL_S = 2.0
LOGS_AT_A_TIME = 200
ALL_IS_WELL = ("Finished in state Completed(", "Beginning flow run", "View at ", "checkpoint step=", "start step=",
               "Downloading flow code", "Executing flow")
LATE = timedelta(seconds=3)
"""Log lines reach the server in batches, some after later ones."""


def train_remotely(
    settings: Settings, spec: TrainingSpec, deployment: str = "", *, verbose: bool = False,
) -> Answer:
    """Start a run of the deployment, show its log, wait for its end.

    Raises:
        UserError: no server, nothing deployed, or a run that was cancelled.
        Broken: the run failed; its own sentence says why.
        Transient: the server does not answer.
    """
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    parameters = Parameters(**dataclasses.asdict(from_anywhere(spec))).model_dump(mode="json")
    try:
        with get_client(sync_client=True) as client:
            found = find(client, deployment or DEPLOYMENT)
    except (httpx.HTTPError, PrefectException) as error:
        raise Transient(f"Prefect does not answer ({error})", where=settings.prefect_api) from error
    started = start_run(str(found.id), {"training": parameters})
    page = run_page(started)
    print(f"Started {started.name}: {page}\nCtrl-C ends the watching, not the run.", file=sys.stderr)
    try:
        with get_client(sync_client=True) as client:
            run = watch(client, started.id, verbose=verbose)
            versions = shown_version(client, started.id)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"The run goes on; its page can cancel it: {page}") from error
    state = run.state
    assert state is not None
    if not state.is_completed():
        kind = UserError if state.is_cancelled() else Broken
        reason = (state.message or "no reason is given").rstrip(".")
        raise kind(f"the run is {state.name}: {reason}", where=run.name,
                   fix=f"Its page: {page}")
    links = {"run": page, **links_of(settings)}
    return Answer({"run": str(run.id), "state": state.name, "version": versions, "links": links},
                  "\n".join([versions or "no version", *table(links)]))


def from_anywhere(spec: TrainingSpec) -> TrainingSpec:
    """Relative paths and patterns that lead somewhere from here made absolute: the worker runs elsewhere."""
    paths: dict[str, Any] = {}
    for name in ("train_data", "validation_data", "base_model"):
        value = getattr(spec, name)
        place = form_of(value)[1]
        if place and _is_here(place):
            paths[name] = value.removesuffix(place) + str(Path(place).expanduser().absolute())
    return dataclasses.replace(spec, **paths)


def _is_here(value: str) -> bool:
    path = Path(MAGIC.split(value)[0] + "*").parent if MAGIC.search(value) else Path(value)
    return "://" not in value and (Path(value).expanduser().exists() or path.expanduser().exists())


def watch(client: SyncPrefectClient, run: UUID, *, verbose: bool = False) -> FlowRun:
    """Print the run's log lines as they come, without those that say nothing but that all is well unless `verbose`;
    returns the run in its final state."""
    told: set[UUID] = set()
    steps: dict[UUID, str] = {}
    since = datetime.now(UTC) - LATE
    while True:
        try:
            found = client.read_flow_run(run)
            lines = lines_since(client, run, since)
        except (httpx.HTTPError, PrefectException) as error:
            print(f"Prefect does not answer, the run goes on: {error}", file=sys.stderr)
            time.sleep(POLL_S)
            continue
        for line in lines:
            if line.id in told:
                continue
            if verbose or not line.message.startswith(ALL_IS_WELL):
                print(f"{step_of(client, line.task_run_id, steps)}{line.message}", file=sys.stderr)
            told.add(line.id)
            since = max(since, line.timestamp - LATE)
        # A crashed run is started again, or failed for good, by deployments/reconcile.py within a minute or two.
        if found.state and found.state.is_final() and not found.state.is_crashed():
            return found
        time.sleep(POLL_S)


def lines_since(client: SyncPrefectClient, run: UUID, since: datetime) -> list[Log]:
    """The run's log lines after that moment, all of them."""
    found: list[Log] = []
    while True:
        page = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]), timestamp=LogFilterTimestamp(after_=since)),
            limit=LOGS_AT_A_TIME, offset=len(found), sort=LogSort.TIMESTAMP_ASC)
        found += page
        if len(page) < LOGS_AT_A_TIME:
            return found


def step_of(client: SyncPrefectClient, task: UUID | None, known: dict[UUID, str]) -> str:
    """The name of the step that a log line comes from, and a colon; empty for the flow's own lines."""
    if task is None:
        return ""
    if task not in known:
        try:
            known[task] = f"{client.read_task_run(task).name}: "
        except (httpx.HTTPError, PrefectException):  # its record comes later than its first line
            return ""
    return known[task]


def shown_version(client: SyncPrefectClient, run: UUID) -> str:
    """The version that the run's links are of, such as "acme/notes version 1", or an empty string."""
    found: list[Any] = client.read_artifacts(artifact_filter=ArtifactFilter(
        key=ArtifactFilterKey(any_=["links"]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return str(found[-1].description).partition(" (")[0] if found else ""
