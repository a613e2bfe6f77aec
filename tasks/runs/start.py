"""A client of Prefect, and runs of deployments: those of `anneal train --remote`, of a run that hands over, of a
training on several machines.

In:   the name of a deployment, parameters      Out: a flow run, which belongs to the worker that takes it
With a key, the same run however often it is asked for: a step that is repeated starts nothing twice. On Kubernetes the
jobs of a training's other machines belong to the first machine's pod, and go with it.
Dies half-way: the run that is started again finds the runs that it started before.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from infra.errors import Transient, UserError
from infra.files import digest_of
from infra.records import Version
from infra.redaction import redacted
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.runs.retries import HOUR_S, step

POD = ("ANNEAL_POD_NAME", "ANNEAL_POD_UID")
"""Set by the job template infra/workpools/kubernetes.json."""
log = logging.getLogger(__name__)


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


def run_page(run: FlowRun) -> str:
    """The address of a run's page in the UI that Prefect's start page leads to. The older one, without `v2`, shows some
    signs of a report as they are written (`&#91;` for a bracket)."""
    return f"{redacted(str(PREFECT_API_URL.value())).removesuffix('/').removesuffix('/api')}/v2/runs/flow-run/{run.id}"


@step("hand over", timeout_s=HOUR_S)
def hand_over_task(deployment: str, spec: TrainingSpec, subject: str) -> FlowRun:
    """Let another deployment go on with a training whose data is packed: from a CPU pool to the GPUs. It takes the same
    steps, and finds the first three done. The same training handed over before is found while its run has not ended.

    Raises what `start_run` does.
    """
    values = dataclasses.asdict(spec)
    key, tries = f"handed over {digest_of([deployment, values])[:32]}", itertools.count(2)
    started = start_run(deployment, {"training": values}, key=key)
    while started.state is not None and started.state.is_final():
        started = start_run(deployment, {"training": values}, key=f"{key} {next(tries)}")
    return started


def handed_over(started: FlowRun, deployment: str) -> Version:
    """The state in which a run ends that another one goes on from, in place of a version."""
    message = f"Its data is packed; {started.name} of {deployment} goes on."
    return cast(Version, Completed(name="HandedOver", message=message))


def start_machines(settings: Settings, launch: str, machines: int) -> None:
    """Start a run of ANNEAL_NODE_DEPLOYMENT for each machine of a launch but the first, once for each launch. One that
    starts too late finds its launch over and ends. Raises what `start_run` does."""
    if machines == 1 or not settings.node_deployment:
        return
    for node in range(1, machines):
        run = start_run(settings.node_deployment, {"launch": launch, "node": node}, key=f"{launch} node {node}",
                        job_variables=owned())
        log.info("node %d of %d: %s of %s", node, machines, run.name, settings.node_deployment)


def owned() -> dict[str, Any] | None:
    """Job variables that make the other pods' jobs belong to this pod; None elsewhere than on Kubernetes."""
    name, uid = (os.environ.get(variable, "") for variable in POD)
    if not uid:
        return None
    return {"owner_references": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]}
