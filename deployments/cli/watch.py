"""Switch the watching of a training's data on and off: what `anneal watch` does.

In:   a spec, how often            Out: one schedule of retrain/watch for each destination, with the parameters
Dies half-way: run the same command again. `anneal deploy` leaves these schedules alone; so may the UI change them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound, PrefectException
from pydantic import ValidationError

from deployments.cli.remote import from_anywhere
from deployments.prefect_setup.apply import WATCH
from flows.parameters import Parameters
from infra.errors import Transient, UserError, shown
from infra.files import digest_of
from infra.models.registry import mlflow_name
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.runs.start import client_of

EVERY = "5m"
SPAN = re.compile(r"(\d+)([mhd])")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def switch_on(settings: Settings, spec: TrainingSpec, every: str, cron: str) -> tuple[str, str]:
    """Create or update the destination's schedule. Returns its slug and "created" or "updated"."""
    parameters = Parameters(**dataclasses.asdict(from_anywhere(spec))).model_dump(mode="json")
    slug, schedule = mlflow_name(spec.destination), cron_of(cron) if cron else interval_of(every, spec.destination)
    with deployment(settings) as (client, stored):
        for known in stored.schedules:
            if known.slug == slug:
                client.update_deployment_schedule(
                    stored.id, known.id, schedule=schedule, active=True, parameters={"training": parameters})
                return slug, "updated"
        client.create_deployment_schedules(stored.id, [DeploymentScheduleCreate(
            schedule=schedule, active=True, slug=slug, parameters={"training": parameters})])
    return slug, "created"


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
            yield client, client.read_deployment_by_name(WATCH)
    except ObjectNotFound as error:
        raise UserError(f"there is no deployment {WATCH}", where=settings.prefect_api,
                        fix="Run `anneal deploy` once.") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise Transient(f"Prefect does not do it ({error})", where=settings.prefect_api) from error
