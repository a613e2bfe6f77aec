"""Accept a training: check it, write it down, answer. What happens then is the projector's matter.

In:   a base model, a destination, inputs       Out: a row; 201 once it is committed, whether Prefect is there or not
Only values that TrainingSpec has checked are kept for Prefect, which evaluates objects with __prefect_kind inside of
parameters. The same request sent again by a client that got no answer is the same training.
"""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from deployments.gateway.catalogue import BaseVersion
from deployments.gateway.context import Gateway
from deployments.gateway.data import resolve
from deployments.gateway.errors import Refusal
from deployments.gateway.ids import new_id
from deployments.gateway.keys import Caller
from deployments.gateway.tables import Model, Training
from infra.errors import shown
from infra.files import digest_of
from infra.spec import FIELDS, TrainingSpec
from infra.storage.http_client import number_in

DATA = ("train_data", "validation_data")
NOT_INPUTS = ("base_model", "destination", "base_version")
INPUTS = [one.name for one in FIELDS if one.name not in NOT_INPUTS]
RETRY_S = 3600.0
"""A client's retry comes within this time of its first try."""
RETRY_COUNT, IDEMPOTENCY_KEY = "x-stainless-retry-count", "idempotency-key"
KEY_CHARACTERS = 255
NO_DESTINATION = "The specified training destination does not exist"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A training as a client asks for it."""

    base: BaseVersion
    destination: str
    input: dict[str, Any]
    base_url: str
    webhook: str = ""
    webhook_completed: str = ""
    webhook_events: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The same for the same request."""
        return digest_of([self.base.version, self.destination, self.input, self.webhook, self.webhook_completed,
                          self.webhook_events, self.about])


def accept(here: Gateway, caller: Caller, wanted: Wanted, headers: Mapping[str, str]) -> Training:
    """The row of the training: a new one, or the one that an earlier try made.

    Raises:
        Refusal: 404 for a destination or file that is not there, 422 for an input that is wrong.
        UserError: an input has a wrong type or range.
        Transient: store or database do not answer.
    """
    key = headers.get(IDEMPOTENCY_KEY, "")[:KEY_CHARACTERS] or None
    if (before := _earlier(here, caller, wanted, key, headers.get(RETRY_COUNT, "0"))) is not None:
        return before
    check_destination_of(here, caller, wanted.destination)
    spec = checked(here, caller, wanted)
    row = Training(
        id=new_id(), owner=caller.owner, model=wanted.base.model, version=wanted.base.version,
        destination=wanted.destination, input=_shown_input(wanted.input), spec=dataclasses.asdict(spec),
        about=wanted.about,
        request_hash=wanted.digest, idempotency_key=key, source="api", base_url=wanted.base_url,
        webhook=wanted.webhook, webhook_completed=wanted.webhook_completed, webhook_events=wanted.webhook_events,
        **begun())
    try:
        with here.database.session() as session:
            session.add(row)
    except IntegrityError:  # the same key at the same moment
        if (before := _earlier(here, caller, wanted, key, "0")) is not None:
            return before
        raise
    return row


def begun() -> dict[str, Any]:
    """Columns of a training of which nothing is known yet."""
    return {
        "flow_run_id": None, "content_id": "", "status": "starting", "waits_for": "", "error": None,
        "output_version": "", "created_at": time.time(), "started_at": None, "completed_at": None, "told_step": 0,
        "hold": "", "attempt": 0, "finish_requested": False, "cancel_requested": False, "cancel_delivered": False,
        "missing_since": None}


def check_destination_of(here: Gateway, caller: Caller, destination: str) -> None:
    """Raise Refusal 404 unless the destination is a model of the caller's."""
    owner, _, name = destination.partition("/")
    with here.database.session() as session:
        found = session.scalar(select(Model.id).where(Model.owner == owner, Model.name == name))
    if found is None or not caller.sees(owner):
        raise Refusal(404, NO_DESTINATION)


def checked(here: Gateway, caller: Caller, wanted: Wanted) -> TrainingSpec:
    """The spec, with addresses that the pipeline reads. Nothing is kept before everything else is right."""
    given = {name: value for name, value in wanted.input.items() if value is not None}
    for name in given:
        if name not in INPUTS:
            raise unknown(name, INPUTS)
    if "train_data" not in given:
        raise Refusal(422, "train_data is missing. Give the address of a JSONL file, such as one of /v1/files.")
    fixed = {"base_model": wanted.base.place, "destination": wanted.destination}
    inline = {name: "inline" for name in DATA if str(given.get(name, "")).startswith("data:")}
    TrainingSpec.of({**given, **inline, **fixed})
    addresses = {name: resolve(here, caller, name, given[name]) for name in DATA if given.get(name)}
    return TrainingSpec.of({**given, **addresses, **fixed})


def unknown(name: str, known: list[str]) -> Refusal:
    """The refusal of an input that is none, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return Refusal(422, f"unknown input {shown(name)}" + (f"; did you mean {near[0]}?" if near else
                                                          f". Known inputs: {', '.join(known)}."))


def _earlier(here: Gateway, caller: Caller, wanted: Wanted, key: str | None, retries: str) -> Training | None:
    """What an earlier try of the same request made. Raises Refusal 422 for a key that was used for another one."""
    own = select(Training).where(Training.owner == caller.owner)
    with here.database.session() as session:
        if key is not None and (row := session.scalar(own.where(Training.idempotency_key == key))) is not None:
            if row.request_hash != wanted.digest:
                raise Refusal(422, "The Idempotency-Key was used for another request. Take a new one.",
                              headers={"x-should-retry": "false"})
            return row
        if not number_in(retries):
            return None
        return session.scalar(own.where(
            Training.request_hash == wanted.digest, Training.created_at > time.time() - RETRY_S).order_by(
                Training.created_at.desc()).limit(1))


def _shown_input(given: dict[str, Any]) -> dict[str, Any]:
    """What a client sent, without files inside of it."""
    return {name: f"{value[:60]}... ({len(value)} characters)" if isinstance(value, str) and value.startswith("data:")
            else value for name, value in given.items()}
