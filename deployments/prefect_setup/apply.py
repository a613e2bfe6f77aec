"""Put the pipeline into Prefect: work pool, queues, GPU slots, deployments, schedules, triggers. `anneal deploy`.

In:   a running Prefect server, prefect.yaml      Out: what stands there, and a list of what differs
Dies half-way: run it again; everything is created or brought up to date. What people set in the UI stays for
schedules, triggers that are on or off, limits and priorities of pools and queues, and the defaults of a pool's job
variables; it is named where it differs. All else is as prefect.yaml says.
Run alone: python -m deployments.prefect_setup.apply
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from deployments.prefect_setup.declared import Declared, declared
from deployments.prefect_setup.pools import CODE, Kind, Pool, ensure_pool
from deployments.prefect_setup.secrets import ensure_secrets
from infra.errors import UserError
from infra.settings import Settings
from tasks.launcher import gpu_slots
from tasks.runs.start import client_of

WATCH = "retrain/watch"
STEP = "prefect.deployments.steps.set_working_directory"


@dataclass(kw_only=True)
class Deployed:
    """What `anneal deploy` left in Prefect."""

    pools: list[str]
    limit: str
    """Name of this machine's concurrency limit; empty for none."""
    deployments: dict[str, str] = field(default_factory=dict)
    """Ids by flow/deployment."""
    differs: list[str] = field(default_factory=list)
    """What Prefect holds otherwise than prefect.yaml says, a sentence each."""


def deploy(settings: Settings, kind: Kind = "process", *, cpu_pool: bool = False) -> Deployed:
    """Create or update everything, then read it back; what runs on the CPU pool only if that is wanted.

    Raises UserError without a server.
    """
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    pools = [Pool("gpu", kind), *([Pool("cpu", kind)] if cpu_pool else [])]
    limit = gpu_slots.limit_of(settings) if kind == "process" else ""
    done = Deployed(pools=[pool.name for pool in pools], limit=limit)
    with client_of(settings) as client:
        for pool in pools:
            done.differs += ensure_pool(client, pool)
        if kind == "docker":
            done.differs += ensure_secrets(client)
        if done.limit:
            gpu_slots.make_limit(client, done.limit, gpu_slots.slots())
        for one in declared():
            pool = Pool(one.work_pool.role, kind)
            if pool not in pools:
                continue
            stored = ensure_deployment(client, one, pool)
            done.deployments[one.full_name] = str(stored.id)
            done.differs += [f"deployment {one.full_name}: {difference}" for difference in (
                *differences(stored, wanted(one, pool)), *ensure_schedules(client, stored, one),
                *ensure_triggers(client, stored, one))]
        done.differs += take_over_watches(client)
    return done


def ensure_deployment(client: SyncPrefectClient, one: Declared, pool: Pool) -> DeploymentResponse:
    """Create or update a deployment, and read it back."""
    flow = flow_of(one.entrypoint)
    values = wanted(one, pool)
    try:
        known = client.read_deployment_by_name(one.full_name)
    except ObjectNotFound:
        client.create_deployment(flow_id=client.create_flow(flow), name=one.name, **values)
    else:  # creating it once more would delete its schedules
        client.update_deployment(known.id, DeploymentUpdate(**values))
    return client.read_deployment_by_name(one.full_name)


def wanted(one: Declared, pool: Pool) -> dict[str, Any]:
    """A deployment in the words of Prefect's API."""
    limit = one.concurrency_limit
    options = limit and ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy))
    return {
        "description": one.description, "entrypoint": one.entrypoint, "tags": one.tags,
        "work_pool_name": pool.name, "work_queue_name": one.work_pool.work_queue_name,
        "job_variables": {name: value for name, value in one.work_pool.job_variables.items()
                          if name in pool.template["variables"]["properties"]},
        "enforce_parameter_schema": True, "pull_steps": [{STEP: {"directory": CODE[pool.kind]}}],
        "parameter_openapi_schema": parameter_schema(flow_of(one.entrypoint)).model_dump_for_openapi(),
        **({"parameters": one.parameters} if one.parameters else {}),
        "concurrency_limit": limit.limit if limit else None,
        **({"concurrency_options": options} if limit else {})}


def differences(stored: DeploymentResponse, values: dict[str, Any]) -> list[str]:
    """What the server did not store as it was told: Prefect ignores what it does not know."""
    limit = stored.global_concurrency_limit
    found = {**dict(stored), "concurrency_limit": limit.limit if limit else None}
    return [f"{name} is {found[name]}, not {value}" for name, value in values.items() if found[name] != value]


def ensure_schedules(client: SyncPrefectClient, stored: DeploymentResponse, one: Declared) -> list[str]:
    """Create missing schedules; returns how the others differ, which people may have meant."""
    known, differs = {schedule.slug: schedule for schedule in stored.schedules}, []
    for want in one.schedules:
        schedule = CronSchedule(cron=want.cron, timezone=want.timezone)
        found = known.get(want.slug)
        if found is None:
            client.create_deployment_schedules(stored.id, [DeploymentScheduleCreate(
                schedule=schedule, active=want.active, slug=want.slug)])
        elif (found.schedule, found.active) != (schedule, want.active):
            cron = getattr(found.schedule, "cron", found.schedule)
            differs.append(f"schedule {want.slug} is {cron!r}, {'active' if found.active else 'not active'}; "
                           f"prefect.yaml says {want.cron!r}, {'active' if want.active else 'not active'} (kept)")
    return differs


def ensure_triggers(client: SyncPrefectClient, stored: DeploymentResponse, one: Declared) -> list[str]:
    """Create or update the automations that start the deployment; one that was switched on or off stays so."""
    differs = []
    for trigger in one.triggers:
        automation = trigger.of(stored.id).as_automation()
        known = client.read_automations_by_name(trigger.name)
        if not known:
            client.create_automation(automation)
            continue
        first, *extra = known
        # The owner is set at the creation; the API takes no update that names it.
        values = {**automation.model_dump(exclude={"owner_resource"}), "enabled": first.enabled}
        client.update_automation(first.id, AutomationCore.model_validate(values))
        for other in extra:
            client.delete_automation(other.id)
        if first.enabled != trigger.enabled:
            differs.append(f"trigger {trigger.name!r} is {'on' if first.enabled else 'off'} (kept)")
    return differs


def take_over_watches(client: SyncPrefectClient) -> list[str]:
    """Move the schedules of an earlier release's watch/data, whose flow is gone, to retrain/watch, and delete it."""
    try:
        old = client.read_deployment_by_name("watch/data")
    except ObjectNotFound:
        return []
    if old.entrypoint != "flows/watch.py:watch":  # somebody else's
        return []
    new = client.read_deployment_by_name(WATCH)
    known = {schedule.slug for schedule in new.schedules}
    moved = [DeploymentScheduleCreate(
        schedule=one.schedule, active=one.active, slug=one.slug, parameters=one.parameters)
        for one in old.schedules if one.slug not in known]
    if moved:
        client.create_deployment_schedules(new.id, moved)
    client.delete_deployment(old.id)
    return [f"deployment watch/data is gone: {WATCH} has its schedules now ({len(moved)})"]


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """The flow at flows/<file>.py:<function>."""
    path, name = entrypoint.split(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return flow


if __name__ == "__main__":
    print(deploy(Settings()))
