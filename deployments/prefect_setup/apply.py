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
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from deployments.prefect_setup.declared import Declared, Trigger, declared
from deployments.prefect_setup.form import short_form
from deployments.prefect_setup.pools import OURS, Pool, ensure_pool
from deployments.prefect_setup.retired import is_used, ours, remove_retired, take_over
from deployments.prefect_setup.secrets import ensure_secrets
from infra.errors import UserError
from infra.settings import Settings
from tasks.launcher import gpu_slots
from tasks.runs.start import client_of

WATCH = "retrain/watch"
JOIN, JOIN_ENTRYPOINT = "join/machine", "flows/join.py:join"
"""Made where ANNEAL_NODE_DEPLOYMENT names it, with the suffix of its pool."""
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


def deploy(settings: Settings, kind: str = "process", pool_name: str = "", *, cpu_pool: bool = False) -> Deployed:
    """Create or update everything for one infrastructure, then read it back; what runs on the CPU pool only if that is
    wanted. The deployments of another one stay as they are.

    Args:
        kind: type of the work pool.
        pool_name: its name, if it is not to be ours.

    Raises UserError without a server, and for a pool of another type.
    """
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    pools = [Pool("gpu", kind, pool_name), *([Pool("cpu", kind, pool_name and f"{pool_name}-cpu")] if cpu_pool else [])]
    limit = gpu_slots.limit_of(settings) if kind == "process" else ""
    done = Deployed(pools=[pool.name for pool in pools], limit=limit)
    with client_of(settings) as client:
        for wanted_pool in pools:
            done.differs += ensure_pool(client, wanted_pool)
        if kind == "docker":
            done.differs += ensure_secrets(client)
        if done.limit:
            gpu_slots.make_limit(client, done.limit, gpu_slots.slots())
        for one in declared():
            pool = next((pool for pool in pools if pool.role == one.work_pool.role), None)
            if pool is None or (one.full_name == JOIN and not joins(settings, client, pool)):
                continue
            stored = ensure_deployment(client, one, pool)
            name = f"{one.full_name}{pool.suffix}"
            triggers = triggers_of(client, one, pool)
            done.deployments[name] = str(stored.id)
            if moved := take_over(client, stored, one.full_name, triggers):
                done.differs += moved
                stored = client.read_deployment(stored.id)
            done.differs += [f"deployment {name}: {difference}" for difference in (
                *differences(stored, wanted(one, pool)), *ensure_schedules(client, stored, one),
                *ensure_triggers(client, stored, triggers))]
        done.differs += remove_retired(client)
    return done


def pool_of(settings: Settings, pool: str, kind: str) -> tuple[str, str]:
    """Type and name that `--pool` and `--type` stand for; no name for a pool of ours. Raises UserError for no type."""
    if pool in OURS and kind in ("", pool):
        return pool, ""
    if not kind:
        with client_of(settings) as client:
            try:
                kind = client.read_work_pool(pool).type
            except ObjectNotFound as error:
                raise UserError("it is not there yet", where=f"work pool {pool}",
                                fix="Say its type, such as --type kubernetes.") from error
    return kind, pool


def ensure_deployment(client: SyncPrefectClient, one: Declared, pool: Pool) -> DeploymentResponse:
    """Create or update a deployment, and read it back."""
    flow = flow_of(one.entrypoint)
    values = wanted(one, pool)
    full_name = f"{one.full_name}{pool.suffix}"
    try:
        known = client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        client.create_deployment(flow_id=client.create_flow(flow), name=f"{one.name}{pool.suffix}", **values)
    else:  # creating it once more would delete its schedules
        client.update_deployment(known.id, DeploymentUpdate(**values))
    return client.read_deployment_by_name(full_name)


def wanted(one: Declared, pool: Pool) -> dict[str, Any]:
    """A deployment in the words of Prefect's API."""
    limit = one.concurrency_limit
    schema = parameter_schema(flow_of(one.entrypoint)).model_dump_for_openapi()
    parameters = dict(one.parameters)
    if "hand_over_to" in parameters:
        parameters["hand_over_to"] += pool.suffix.removesuffix("-cpu")
    options = limit and ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy))
    return {
        "description": one.description, "entrypoint": one.entrypoint, "tags": one.tags,
        "work_pool_name": pool.name, "work_queue_name": one.work_pool.work_queue_name,
        "job_variables": {name: value for name, value in one.work_pool.job_variables.items()
                          if name in pool.template["variables"]["properties"]},
        "enforce_parameter_schema": True, "pull_steps": [{STEP: {"directory": pool.code}}],
        "parameter_openapi_schema": short_form(schema) if one.form == "short" else schema,
        **({"parameters": parameters} if parameters else {}),
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


def triggers_of(client: SyncPrefectClient, one: Declared, pool: Pool) -> list[Trigger]:
    """The deployment's triggers. Of several infrastructures one takes an event: another's trigger is made off."""
    if not pool.suffix:
        return one.triggers
    return [trigger.model_copy(update={
        "name": f"{trigger.name} ({pool.suffix[1:]})",
        "enabled": trigger.enabled and not client.read_automations_by_name(trigger.name)}) for trigger in one.triggers]


def ensure_triggers(client: SyncPrefectClient, stored: DeploymentResponse, triggers: list[Trigger]) -> list[str]:
    """Create or update the automations that start the deployment; one that was switched on or off stays so."""
    differs = []
    for trigger in triggers:
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


def joins(settings: Settings, client: SyncPrefectClient, pool: Pool) -> bool:
    """Whether trainings start runs of JOIN on other machines. One that an earlier release made and nobody used goes."""
    name = f"{JOIN}{pool.suffix}"
    if settings.node_deployment == name:
        return True
    known = ours(client, name, JOIN_ENTRYPOINT)
    if known is None:
        return False
    if not is_used(client, known):
        client.delete_deployment(known.id)
        return False
    return True


def find(client: SyncPrefectClient, full_name: str) -> DeploymentResponse:
    """The deployment of that name, or the one that stands in for it on the only infrastructure that there is, such as
    finetune/finetune-docker. Raises UserError for none, and for several."""
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        flow, name = full_name.split("/")
        declared_names = {one.name for one in declared()}
        found = [one for one in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
                 if one.name.startswith(f"{name}-") and not any(
                     other != name and one.name.startswith(other) for other in declared_names)]
    if len(found) == 1:
        return found[0]
    several = ", ".join(sorted(f"{flow}/{one.name}" for one in found))
    raise UserError(f"there is no deployment {full_name}{several and f', but {several}'}", where="Prefect",
                    fix="Say which one: --deployment NAME." if found else "Run `anneal deploy` once.")


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """The flow at flows/<file>.py:<function>."""
    path, name = entrypoint.split(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return flow


if __name__ == "__main__":
    print(deploy(Settings()))
