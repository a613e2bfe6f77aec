"""A new training, from a form: choose or upload a file, see what is in it, estimate, start.

    GET /new      POST /new with action=estimate or action=start
The form is made from TrainingSpec; what is left at its default is not sent on. The estimate shows rows as the model
sees them, with the part that is learned, and the lengths of all of them. The same form sent twice is one training.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from typing import Any, get_args, get_origin

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.data import own_file
from deployments.gateway.errors import Refusal
from deployments.gateway.estimates import estimate_of
from deployments.gateway.ids import new_id
from deployments.gateway.intents import IDEMPOTENCY_KEY, NOT_INPUTS, Wanted, accept, check_destination_of, checked
from deployments.gateway.keys import Caller
from deployments.gateway.pages.render import Page, form_of, page, see_other
from deployments.gateway.pages.session import Visitor, check_scope
from deployments.gateway.tables import File, Model
from deployments.gateway.trainings import find_training
from infra.errors import AnnealError, UserError
from infra.spec import FIELD_TYPES, FIELDS, check_destination

router = APIRouter(route_class=Page, include_in_schema=False)
SHOWN_FILES = 100
AT_ONCE = ("num_train_epochs", "learning_rate", "lora_rank", "train_batch_size", "peft_method", "task_type")
"""What most people change; the rest is folded away."""
DATA = ("train_data", "validation_data")
KNOBS = [one for one in FIELDS if one.name not in (*NOT_INPUTS, *DATA)]
BAR_WIDTH, BARS_HEIGHT = 14, 80


@router.get("/new")
def new(request: Request, caller: Visitor, here: Here, file: str = "", like: str = "") -> Response:
    """An empty form, or one with a file, or one with the values of another training."""
    check_scope(caller, "train")
    given, error = {"train_data": file}, ""
    if like:
        row = find_training(here, like, caller)
        given = {**{name: _text(value) for name, value in row.input.items()}, "destination": row.destination,
                 "base": f"{row.model}:{row.version}"}
        elsewhere = {name: given[name] for name in DATA if name in given and not own_file(here, given[name])}
        given |= {name: own_file(here, given[name]) for name in DATA if name in given}
        error = " ".join(f"The {name} of that training is {value[:200]}, which this form cannot choose: start it again "
                         "by code, or upload the rows." for name, value in elsewhere.items())
    return _form(here, caller, {**given, "once": secrets.token_hex(8)}, error=error)


@router.post("/new")
async def sent(request: Request, caller: Visitor, here: Here, base: Base) -> Response:
    """Estimate, or start."""
    check_scope(caller, "train")
    form = await form_of(request)
    return await here.slowly(_sent, here, caller, form, base)


def _sent(here: Gateway, caller: Caller, form: dict[str, str], base: str) -> Response:
    try:
        wanted = _wanted(here, form, base)
        if form.get("action") == "start":
            _make_destination(here, caller, wanted.destination)
            row = accept(here, caller, wanted, {
                IDEMPOTENCY_KEY: f"page-{form.get('once', '')[:40]}-{wanted.digest[:16]}"})
            return see_other(f"/trainings/{row.id}")
        with here.database.session() as session:
            owner, _, name = wanted.destination.partition("/")
            is_there = session.scalar(select(Model.id).where(Model.owner == owner, Model.name == name)) is not None
        if is_there:
            check_destination_of(here, caller, wanted.destination)
        estimate = estimate_of(here, checked(here, caller, wanted))
    except Refusal as error:
        return _form(here, caller, form, error=error.detail, status=error.status)
    except AnnealError as error:
        return _form(here, caller, form, error=str(error), status=422 if isinstance(error, UserError) else 503)
    return _form(here, caller, form, estimate=estimate)


def _form(
    here: Gateway, caller: Caller, given: dict[str, str], *, error: str = "", status: int = 200, estimate: Any = None,
) -> Response:
    given = defaultdict(str, given)
    query = select(File).where(File.place != "").order_by(File.created_at.desc()).limit(SHOWN_FILES)
    with here.database.session() as session:
        files = session.scalars(query if caller.is_admin else query.where(File.owner == caller.owner)).all()
        chosen = session.scalars(select(File).where(File.id.in_([given[name] for name in DATA]))).all()
        models = session.scalars(select(Model) if caller.is_admin else select(Model).where(
            Model.owner == caller.owner)).all()
    shown = {one.id for one in files}
    files = [*files, *(one for one in chosen if one.id not in shown and one.place and caller.sees(one.owner))]
    there = {one.id: one for one in files}
    if gone := [name for name in DATA if given[name] and given[name] not in there]:
        error = error or f"The file of {' and '.join(gone)} is not here any more. Upload it again."
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in KNOBS:
        group = "Usual" if one.name in AT_ONCE else str(one.metadata["group"])
        groups.setdefault(group, []).append(_field(one, given))
    ordered = {"Usual": groups.pop("Usual"), **groups}
    return page("new", caller, status, files=files, models=models, chosen=there.get(given["train_data"]), given=given,
                groups=ordered, bases=here.catalogue.bases, error=error, estimate=estimate,
                bars=bars_of(estimate.pack.lengths.get("train", []), estimate.pack.bin_tokens) if estimate else [])


def _field(one: Any, given: dict[str, str]) -> dict[str, Any]:
    kind = FIELD_TYPES[one.name]
    choices = list(get_args(kind)) if get_origin(kind) is not None else ["true", "false"] if kind is bool else []
    default = _text(one.default)
    return {"name": one.name, "help": one.metadata["help"], "choices": choices, "default": default,
            "value": given.get(one.name, default), "number": kind in (int, float),
            "step": "1" if kind is int else "any", "least": one.metadata["ge"], "most": one.metadata["le"]}


def _wanted(here: Gateway, form: dict[str, str], base: str) -> Wanted:
    """What a form asks for. Raises Refusal and UserError."""
    model, _, version = form.get("base", "").partition(":")
    found = here.catalogue.find(model, version)
    if found is None:
        raise Refusal(422, "Choose a base model.")
    if not form.get("train_data"):
        raise Refusal(422, "Choose a file with training data, or upload one.")
    check_destination(form.get("destination", ""))
    inputs: dict[str, Any] = {
        name: f"{base}/v1/files/{form[name]}" for name in DATA if form.get(name)}
    for one in KNOBS:
        if (text := form.get(one.name, "").strip()) and text != _text(one.default):
            inputs[one.name] = _value(one.name, text)
    return Wanted(base=found, destination=form.get("destination", ""), input=inputs, base_url=base,
                  about={"webhook": ""})


def _value(name: str, text: str) -> Any:
    """A field's text as the spec takes it, which says what is wrong with it."""
    kind = FIELD_TYPES[name]
    try:
        if kind is bool:
            return {"true": True, "false": False}.get(text, text)
        return int(text) if kind is int else float(text) if kind is float else text
    except ValueError:
        return text


def _make_destination(here: Gateway, caller: Caller, destination: str) -> None:
    owner, _, name = destination.partition("/")
    if not caller.sees(owner):
        raise Refusal(422, f"Your key may train models of {caller.owner}, not of {owner}.")
    if here.catalogue.of(destination):
        raise Refusal(422, f"{destination} is a base model. Choose another name.")
    try:
        with here.database.session() as session:
            if session.scalar(select(Model.id).where(Model.owner == owner, Model.name == name)) is None:
                session.add(Model(id=new_id(), owner=owner, name=name, visibility="private", hardware="", about={},
                                  created_at=time.time()))
    except IntegrityError:
        return  # made at the same moment


def bars_of(counts: list[int], bin_tokens: int) -> list[dict[str, Any]]:
    """Bars of a histogram of lengths: where each stands, how high it is, and what it says."""
    most = max(counts, default=0) or 1
    return [{"x": number * BAR_WIDTH, "height": round(count / most * BARS_HEIGHT, 1),
             "y": round(BARS_HEIGHT - count / most * BARS_HEIGHT, 1),
             "says": f"{number * bin_tokens} to {(number + 1) * bin_tokens - 1} tokens: {count} rows"}
            for number, count in enumerate(counts)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
