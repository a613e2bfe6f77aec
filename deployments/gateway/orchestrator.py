"""What the gateway asks of Prefect: start a run once, tell how runs are, cancel one.

In:   a training's id as the idempotency key, so that a repeated start is the same run      Out: flow runs
Everything that Prefect may answer with when it is away becomes Transient. Used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling
from pydantic import ValidationError

from flows.parameters import Parameters
from infra.errors import Transient, UserError
from infra.settings import Settings
from tasks.runs.start import client_of

DEPLOYMENT = "finetune/finetune"
TAG = "gateway"
PAGE = 200
"""What Prefect gives at a time."""
FLOWS = ("finetune", "retrain")
REFUSED = (400, 409, 422)
T = TypeVar("T")


class Orchestrator:
    """Prefect, as far as it is needed here."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def submit(self, key: str, spec: dict[str, Any]) -> str:
        """Start a training, or find the run that was started with that key; returns the run's id.

        Raises Transient, and UserError for parameters that this release or Prefect does not take.
        """
        try:
            parameters = Parameters(**spec).model_dump(mode="json")
        except ValidationError as error:
            raise UserError(f"the parameters are those of another release ({error.error_count()} faults)") from error

        def start(client: SyncPrefectClient) -> FlowRun:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
            return client.create_flow_run_from_deployment(
                deployment.id, parameters={"training": parameters}, idempotency_key=key, tags=[TAG])

        return str(self._ask(start).id)

    def runs(self, identities: Sequence[str]) -> dict[str, FlowRun]:
        """Those of the runs that Prefect knows, by their ids. Raises Transient."""
        found: dict[str, FlowRun] = {}
        for start in range(0, len(identities), PAGE):
            chosen = [UUID(one) for one in identities[start:start + PAGE]]
            page = self._ask(lambda client, chosen=chosen: client.read_flow_runs(  # type: ignore[misc]
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=chosen)), limit=PAGE))
            found |= {str(run.id): run for run in page}
        return found

    def trainings_since(self, after: datetime) -> Iterator[FlowRun]:
        """Runs of trainings that were to start after that moment, the newest first. Raises Transient."""
        offset = 0
        while True:
            page = self._ask(lambda client, offset=offset: client.read_flow_runs(  # type: ignore[misc]
                flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
                flow_run_filter=FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=after)),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=PAGE, offset=offset))
            yield from page
            offset += len(page)
            if len(page) < PAGE:
                return

    def cancel(self, run: str) -> None:
        """Have a run stopped; one that has ended stays as it is. Raises Transient."""

        def stop(client: SyncPrefectClient) -> None:
            try:
                found = client.read_flow_run(UUID(run))
            except ObjectNotFound:
                return
            if found.state is None or not found.state.is_final():
                client.set_flow_run_state(UUID(run), Cancelling())

        self._ask(stop)

    def _ask(self, what: Callable[[SyncPrefectClient], T]) -> T:
        with _translated(self._settings.prefect_api), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            if not self._settings.prefect_api:
                raise Transient("no Prefect server is known", fix="Start one with `anneal up`.")
            with client_of(self._settings) as client:
                return what(client)


def key_of(training: str, attempt: int) -> str:
    """The idempotency key of a training's run: its id, and after a pause another one."""
    return f"{training}-{attempt}" if attempt else training


def is_over(run: FlowRun) -> bool:
    """Whether nothing more comes of a run. One that crashed is started again, or failed: deployments/reconcile.py."""
    return run.state is not None and run.state.is_final() and run.state.type != StateType.CRASHED


def value_of(run: FlowRun, name: str) -> str:
    """What a tag of the run says, such as training:<id>; empty without one."""
    return next((tag.partition(":")[2] for tag in run.tags if tag.startswith(f"{name}:")), "")


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except ObjectNotFound as error:
        raise Transient(f"there is no deployment {DEPLOYMENT}", where=where, fix="Run `anneal deploy` once.") from error
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise UserError(f"Prefect refuses the parameters ({error.response.text[:300]})", where=where) from error
        raise Transient(f"Prefect answers {status}", where=where) from error
    except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as error:
        raise Transient(f"Prefect does not answer ({type(error).__name__})", where=where) from error
