"""A client of Prefect, and runs of deployments: those of `anneal train --remote`, of a run that hands over, of a
training on several machines.

In:   the name of a deployment, parameters      Out: a flow run, which belongs to the worker that takes it
With a key, the same run however often it is asked for: a step that is repeated starts nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.errors import Transient, UserError
from infra.security.redaction import redacted
from infra.settings import Settings


@contextmanager
def client_of(settings: Settings) -> Iterator[SyncPrefectClient]:
    """A client of the server that the settings name, which is also where events go meanwhile."""
    auth = {PREFECT_API_AUTH_STRING: settings.prefect_auth} if settings.prefect_auth else {}
    with temporary_settings({PREFECT_API_URL: settings.prefect_api, **auth}), get_client(sync_client=True) as client:
        yield client


def start_run(
    deployment: str, parameters: dict[str, Any], *, key: str | None = None,
    job_variables: dict[str, Any] | None = None,
) -> FlowRun:
    """Let a worker run the deployment.

    Raises:
        UserError: there is no such deployment.
        Transient: the server does not answer, or does not start it.
    """
    server = PREFECT_API_URL.value() or "Prefect"
    try:
        started = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key,
                                 job_variables=job_variables)
    except ObjectNotFound as error:
        raise UserError(f"there is no deployment {deployment}", where=server,
                        fix="Run `anneal deploy` once.") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise Transient(f"{deployment} is not started ({error})", where=server) from error
    assert isinstance(started, FlowRun)
    return started


def page_of(run: FlowRun) -> str:
    """The address of a run's page in the UI that Prefect's start page leads to. The older one, without `v2`, shows some
    signs of a report as they are written (`&#91;` for a bracket)."""
    return f"{redacted(str(PREFECT_API_URL.value())).removesuffix('/').removesuffix('/api')}/v2/runs/flow-run/{run.id}"
