"""What a training would take, before anything is started: POST .../trainings/estimate, and the page of a new training.

In:   the body of a training      Out: steps, memory, time with its interval, price; what was found in the data
The data is ingested, judged and packed as the training would do it, which then finds that done. No GPU is asked for and
no weights are loaded; figures are those of the machine on which the gateway runs. One at a time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import DATA_BODY_BYTES, Refusal, read_json
from deployments.gateway.intents import check_destination_of, checked
from deployments.gateway.keys import Caller, Trainer
from deployments.gateway.trainings import wanted_of
from infra.records import Pack
from infra.spec import TrainingSpec
from tasks.launcher.forecast import Forecast
from tasks.launcher.measured import Span
from tasks.launcher.whole_run import whole

router = APIRouter()
WAIT_S = 1.0
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Estimate:
    """A forecast, and what was found on the way to it."""

    forecast: Forecast
    pack: Pack
    notes: list[str]

    @property
    def seconds(self) -> Span | None:
        """Low, likely, high, of all steps after the data is packed; None where nothing is known."""
        return whole(self.forecast.phases) if self.forecast.phases else None

    @property
    def usd(self) -> Span | None:
        """The same of the price; None without a price of the device."""
        if self.seconds is None or self.forecast.usd_per_hour is None:
            return None
        each = self.forecast.usd_per_hour * self.forecast.paid / 3600
        return Span(*(second * each for second in self.seconds))

    def view(self) -> dict[str, Any]:
        """As clients see it."""
        found = self.forecast
        return {
            "device": found.device, "ranks": found.ranks, "steps": found.steps, "tokens": found.tokens,
            "seconds": _span(self.seconds), "usd": _span(self.usd), "usd_per_hour": found.usd_per_hour,
            "is_measured": found.is_measured, "memory_gib": round(sum(found.memory_gib.values()), 2),
            "fits": found.fits, "lines": found.lines(), "notes": self.notes}


@router.post("/models/{owner}/{name}/versions/{version}/trainings/estimate")
async def estimate(
    owner: str, name: str, version: str, request: Request, caller: Trainer, here: Here, base: Base,
) -> dict[str, Any]:
    """What such a training would take."""
    body = await read_json(request, DATA_BODY_BYTES)
    return await here.slowly(_estimate, f"{owner}/{name}", version, body, caller, here, base)


def estimate_of(here: Gateway, spec: TrainingSpec) -> Estimate:
    """Blocks until it is known, and not while another is made: threads are few. Raises UserError for what the training
    would refuse, Transient, and Refusal 503."""
    from flows.finetune import estimated  # after Prefect's environment is set

    if not _one_at_a_time.acquire(timeout=WAIT_S):
        raise Refusal(503, "Another estimate is being made. Try again in a few seconds.", headers={"Retry-After": "5"})
    try:
        notes: list[str] = []
        return Estimate(*estimated(here.settings, spec, notes.append, tries_base=False), notes)
    finally:
        _one_at_a_time.release()


def _estimate(
    model: str, version: str, body: dict[str, Any], caller: Caller, here: Gateway, base: str,
) -> dict[str, Any]:
    wanted = wanted_of(model, version, body, caller, here, base)
    check_destination_of(here, caller, wanted.destination)
    return estimate_of(here, checked(here, caller, wanted)).view()


def _span(span: Span | None) -> dict[str, float] | None:
    return None if span is None else {"low": round(span.low, 4), "likely": round(span.likely, 4),
                                      "high": round(span.high, 4)}
