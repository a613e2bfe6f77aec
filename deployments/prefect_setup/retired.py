"""What earlier releases put into Prefect under other names: moved or removed, so that nothing is left over.

In:   a Prefect server      Out: schedules and parameters of a renamed deployment belong to the new one; sentences
A deployment that has one of these names and another entrypoint is somebody else's and stays.
Dies half-way: run `anneal deploy` again.
"""

from __future__ import annotations

from contextlib import suppress

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.prefect_setup.declared import Trigger
from infra.stack.services import POOL

RENAMED = {
    "finetune/finetune": ("finetune/gpu", "flows/finetune.py:finetune"),
    "finetune/prepare": ("finetune/cpu", "flows/finetune.py:finetune"),
    "retrain/retrain": ("retrain/weekly", "flows/retrain.py:retrain"),
    "retrain/watch": ("watch/data", "flows/watch.py:watch"),
    "predict/predict": ("predict/batch", "flows/predict.py:predict"),
}
"""The name now: the old one, and the entrypoint by which it is known as ours."""
RECONCILE = ("reconcile/every-minute", "flows/reconcile.py:reconcile")
"""Since then a service of the stack: deployments/reconcile.py."""
RECONCILE_TRIGGERS = ("anneal: look after a run that crashed", "anneal: look after runs when a worker starts")
CONTROL = "control"
"""The queue that only reconcile had."""


def take_over(
    client: SyncPrefectClient, new: DeploymentResponse, full_name: str, triggers: list[Trigger],
) -> list[str]:
    """Give the deployment what people set at the one that it replaces, and delete that, unless it is in another pool.

    A trigger that somebody switched off stays off: it goes with the old deployment, and is made anew.
    """
    old = ours(client, *RENAMED[full_name]) if full_name in RENAMED else None
    if old is None or old.work_pool_name not in (None, new.work_pool_name):
        return []
    known = {schedule.slug for schedule in new.schedules}
    moved = [DeploymentScheduleCreate(
        schedule=one.schedule, active=one.active, slug=one.slug, parameters=one.parameters)
        for one in old.schedules if one.slug is None or one.slug not in known]
    if moved:
        client.create_deployment_schedules(new.id, moved)
    if old.parameters and not new.parameters:
        client.update_deployment(new.id, DeploymentUpdate(parameters=old.parameters))
    off = [trigger for trigger in triggers
           if any(not automation.enabled for automation in client.read_automations_by_name(trigger.name))]
    client.delete_deployment(old.id)
    for trigger in off:
        for automation in client.read_automations_by_name(trigger.name):
            client.delete_automation(automation.id)
        client.create_automation(trigger.of(new.id).as_automation().model_copy(update={"enabled": False}))
    return [f"deployment {RENAMED[full_name][0]} is called {full_name} now; it has its schedules ({len(moved)})"]


def remove_retired(client: SyncPrefectClient) -> list[str]:
    """Remove what is a service now, with its runs, which held nothing."""
    said = []
    if (old := ours(client, *RECONCILE)) is not None:
        for name in RECONCILE_TRIGGERS:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
        client.delete_deployment(old.id)
        client.delete_flow(old.flow_id)
        said.append(f"deployment {RECONCILE[0]} is gone: `anneal up` runs it as a service now")
        with suppress(ObjectNotFound):
            queue = client.read_work_queue_by_name(CONTROL, work_pool_name=old.work_pool_name or POOL)
            client.delete_work_queue_by_id(queue.id)
    return said


def is_used(client: SyncPrefectClient, deployment: DeploymentResponse) -> bool:
    """Whether it has any run."""
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    return bool(client.read_flow_runs(deployment_filter=only, limit=1))


def ours(client: SyncPrefectClient, full_name: str, entrypoint: str) -> DeploymentResponse | None:
    """The deployment of that name, if it is one of ours."""
    try:
        found = client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None
    return found if found.entrypoint == entrypoint else None
