"""Put the pipeline into Prefect: the work pool `gpu-pool` and the deployment `finetune/gpu`.

In:   a running Prefect server       Out: a pool and a deployment that starts from the UI's form
Dies half-way: run it again; everything is created or brought up to date, and schedules, limits and
other edits that were made in the UI stay.
Run alone: python -m deployments.pipelines
"""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from infra.errors import Broken, UserError
from infra.launch import ROOT
from infra.services import POOL
from infra.settings import Settings

NAME = "gpu"
TAGS = ["anneal"]
STEP = "prefect.deployments.steps.set_working_directory"


def deploy(settings: Settings) -> str:
    """Create or update the pool and `finetune/gpu`; returns the deployment's id."""
    from flows.finetune import finetune

    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    with temporary_settings({PREFECT_API_URL: settings.prefect_api}), get_client(sync_client=True) as client:
        ensure_pool(client)
        return str(ensure_deployment(client, finetune, "flows/finetune.py:finetune").id)


def ensure_pool(client: SyncPrefectClient) -> None:
    """The process pool. Runs do not write to the worker's console: a worker's death would crash them."""
    template: dict[str, Any]
    try:
        template = client.read_work_pool(POOL).base_job_template
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(
            name=POOL, type=ProcessWorker.type, base_job_template=_quiet(template),
            description="Trainings on this machine's GPUs (or its CPU)."))
        return
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=_quiet(template)))


def ensure_deployment(
    client: SyncPrefectClient, flow: Flow[..., Any], entrypoint: str, name: str = NAME,
) -> DeploymentResponse:
    """The flow's deployment on the pool, read back. `entrypoint` is relative to the project's root.

    Raises Broken when the server did not store what was sent: Prefect ignores what it does not know.
    """
    wanted: dict[str, Any] = {
        "entrypoint": entrypoint, "work_pool_name": POOL, "tags": TAGS, "enforce_parameter_schema": True,
        "pull_steps": [{STEP: {"directory": str(ROOT)}}],
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
    }
    try:
        known = client.read_deployment_by_name(f"{flow.name}/{name}")
    except ObjectNotFound:
        client.create_deployment(
            flow_id=client.create_flow(flow), name=name, description=flow.description, **wanted)
    else:  # creating it once more would delete its schedules
        client.update_deployment(known.id, DeploymentUpdate(description=flow.description, **wanted))
    stored = client.read_deployment_by_name(f"{flow.name}/{name}")
    for field, value in wanted.items():
        if getattr(stored, field) != value:
            raise Broken(f"{field} was not stored", where=f"deployment {flow.name}/{name}",
                         fix="Check that server and client are the same Prefect version.")
    return stored


def _quiet(template: dict[str, Any]) -> dict[str, Any]:
    """The job template with `stream_output` off."""
    template["variables"]["properties"]["stream_output"]["default"] = False
    return template


if __name__ == "__main__":
    print(deploy(Settings()))
