"""Switch the watching of a training's data on and off: what `anneal watch` does.

In:   options, how often, the parameters of the newest version      Out: one schedule of retrain/watch for each
      destination, with the parameters
Dies half-way: run the same command again. `anneal deploy` leaves these schedules alone; so may the UI change them.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import PrefectException
from pydantic import ValidationError

from deployments.cli.options import given_in
from deployments.cli.remote import from_anywhere
from deployments.prefect_setup.apply import WATCH, find
from flows.parameters import Parameters
from infra.errors import Transient, UserError, shown
from infra.files import digest_of
from infra.models.base_models import find_same
from infra.models.registry import Registry, mlflow_name
from infra.settings import Settings
from infra.spec import FIELDS, TrainingSpec
from infra.storage.store import Store
from tasks.data.source_cache import sources_of
from tasks.runs.start import client_of

EVERY = "5m"
SPAN = re.compile(r"(\d+)([mhd])")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Plan:
    """What is going to be watched and trained."""

    spec: TrainingSpec
    schedule: CronSchedule | IntervalSchedule
    version: int
    """The newest version, whose parameters are taken where none are given; 0: there is none."""

    def lines(self) -> dict[str, str]:
        """What people read before it is switched on."""
        changed = {field.name: getattr(self.spec, field.name) for field in FIELDS
                   if field.default is not dataclasses.MISSING and getattr(self.spec, field.name) != field.default}
        origin = f"as of version {self.version}" if self.version else "there is no version yet"
        told = ", ".join(f"{name} {value}" for name, value in changed.items())
        return {"trains": f"{self.spec.destination} from {self.spec.base_model}, when the data has changed",
                "data": ", ".join(sources_of(self.spec)),
                "parameters": f"{told or 'all by default'} ({origin})"}


def plan_of(settings: Settings, options: argparse.Namespace) -> Plan:
    """The parameters of the destination's newest version, those that the options give instead, and when to look.

    Raises UserError, naming the field or option, Transient when the registry does not answer.
    """
    given = given_in(options)
    TrainingSpec.of({"train_data": "?", "base_model": "?", **given})  # what is wrong in any case is told at once
    schedule = cron_of(options.cron) if options.cron else interval_of(options.every or EVERY, given["destination"])
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    version, earlier = newest_parameters(settings, given["destination"], is_base_given="base_model" in given)
    return Plan(TrainingSpec.of({**earlier, **given}), schedule, version)


def newest_parameters(settings: Settings, destination: str, *, is_base_given: bool) -> tuple[int, dict[str, Any]]:
    """Number and parameters of the newest version; (0, {}) without one. Its data has to be named again: a version keeps
    the names of its files alone."""
    registry = Registry(settings)
    newest = registry.newest(destination)
    if newest is None:
        return 0, {}
    manifest = Store(settings).find(registry.look_up(destination, str(newest.number)).folder)
    record = manifest.record if manifest else {}
    names = {field.name for field in FIELDS
             if field.name not in ("train_data", "validation_data", "base_model", "base_version")}
    found = {name: value for name, value in record.get("spec", {}).items() if name in names}
    if "base" in record and not is_base_given:
        base = record["base"]
        found["base_model"] = base["name"] if "/" in base["name"] else find_same(
            settings, base["name"], base["digest"], f"version {newest.number} of {destination}").path
    return newest.number, found


def switch_on(settings: Settings, plan: Plan, *, from_champion: bool = False) -> tuple[str, str]:
    """Create or update the destination's schedule. Returns its slug and "created" or "updated".

    `from_champion`: each training goes on from the version that is served then.
    """
    training = Parameters(**dataclasses.asdict(from_anywhere(plan.spec))).model_dump(mode="json")
    parameters = {"training": training, **({"continue_from_champion": True} if from_champion else {})}
    slug, schedule = mlflow_name(plan.spec.destination), plan.schedule
    with deployment(settings) as (client, stored):
        for known in stored.schedules:
            if known.slug == slug:
                client.update_deployment_schedule(
                    stored.id, known.id, schedule=schedule, active=True, parameters=parameters)
                return slug, "updated"
        client.create_deployment_schedules(stored.id, [DeploymentScheduleCreate(
            schedule=schedule, active=True, slug=slug, parameters=parameters)])
    return slug, "created"


def watched(settings: Settings) -> dict[str, dict[str, Any]]:
    """What is watched: by destination its data, how often, and whether the schedule is active."""
    with deployment(settings) as (_, stored):
        found = {}
        for known in stored.schedules:
            training = known.parameters.get("training", {})
            name = training.get("destination") or (known.slug or "").replace("--", "/")
            found[name] = {
                "data": training.get("train_data", ""), "looks": often(known.schedule), "active": known.active}
        return found


def often(schedule: object) -> str:
    """When a schedule looks, in words."""
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval}"
    return str(getattr(schedule, "cron", schedule))


def switch_off(settings: Settings, destination: str) -> tuple[str, bool]:
    """Remove the destination's schedule. Returns its slug and whether there was one."""
    slug = mlflow_name(destination)
    with deployment(settings) as (client, stored):
        found = [known for known in stored.schedules if known.slug == slug]
        for known in found:
            client.delete_deployment_schedule(stored.id, known.id)
    return slug, bool(found)


def interval_of(every: str, destination: str) -> IntervalSchedule:
    """A schedule such as 5m. Each destination has moments of its own, so that they do not all look at once."""
    fits = SPAN.fullmatch(every)
    span = timedelta(**{UNITS[fits[2]]: int(fits[1])}) if fits and len(fits[1]) < 5 else timedelta()
    if not fits or not span:
        raise UserError(f"--every is {shown(every)}", allowed="a number and m, h or d, such as 5m")
    offset = timedelta(seconds=int(digest_of(destination)[:8], 16) % int(span.total_seconds()))
    return IntervalSchedule(interval=span, anchor_date=datetime(2026, 1, 1, tzinfo=UTC) + offset, timezone="UTC")


def cron_of(cron: str) -> CronSchedule:
    """A schedule in cron's words, in UTC."""
    try:
        return CronSchedule(cron=cron, timezone="UTC")
    except ValidationError as error:
        raise UserError(f"--cron is {shown(cron)}", allowed="five fields such as '*/10 * * * *' (UTC)") from error


@contextmanager
def deployment(settings: Settings) -> Iterator[tuple[SyncPrefectClient, DeploymentResponse]]:
    """That deployment and a client of its server. Raises UserError without them, Transient for no answer."""
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    try:
        with client_of(settings) as client:
            yield client, find(client, WATCH)
    except (httpx.HTTPError, PrefectException) as error:
        raise Transient(f"Prefect does not do it ({error})", where=settings.prefect_api) from error
