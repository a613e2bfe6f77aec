"""Fine-tune a language model: the whole pipeline on one screen.

In:   Parameters (infra/spec.py)     Out: the registered Version; the predictor answers with it
Dies half-way: start it again with the same parameters. Finished steps return at once, training
goes on at its last checkpoint, and one training gives one version however often it is started.
Run alone:
    from flows.finetune import finetune
    finetune({"train_data": "data.jsonl", "base_model": "models/llama", "destination": "acme/summarizer"})
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from prefect import flow, runtime

from flows.parameters import Parameters, guarded
from infra.models.base_models import find_base, look_for_base
from infra.models.base_versions import check_same_base, resolved
from infra.records import Pack, Split, Trained, Version
from infra.run_listener import listener
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.addresses import with_columns
from infra.storage.store import Store
from tasks.data.datasets import address_of
from tasks.deploy import deploy_task
from tasks.evaluate import evaluate_task, refuse_unscorable, scorable_task
from tasks.ingest import base_task, ingest, ingest_task
from tasks.launcher.devices import refuse_optimizer
from tasks.launcher.forecast import Forecast
from tasks.launcher.measured import note_measured
from tasks.launcher.placement import place, try_base
from tasks.launcher.whole_run import to_keep
from tasks.pack import as_formatted, find_pack, notes_of, pack, pack_task
from tasks.register import register_task
from tasks.runs.attempt import RUNS, survives
from tasks.runs.start import hand_over_task, handed_over, run_page
from tasks.runs.step_times import step_times
from tasks.train import train_task, training_id
from tasks.ui import reports
from tasks.ui.tracking import ends_in_mlflow
from tasks.validate import tell, validate, validate_task

log = logging.getLogger(__name__)


@guarded
@flow(name="finetune", flow_run_name="finetune {training.destination}", persist_result=False)
@survives
def finetune(training: Parameters, hand_over_to: str = "") -> Version:
    """Ingest, validate, pack, train, evaluate, register, deploy.

    Args:
        training: What to train, on what, and where it goes.
        hand_over_to: Deployment that goes on after `pack`, such as finetune/finetune for a run on a machine without
            GPUs; empty: this run does everything.
    """
    settings = Settings()
    spec = startable(settings, training.spec(), elsewhere=bool(hand_over_to))
    return pipeline(settings, *data_of(spec), hand_over_to)


def startable(settings: Settings, spec: TrainingSpec, *, elsewhere: bool = False) -> TrainingSpec:
    """The spec with an exact base version. Raises UserError for what that version, or this machine, cannot do;
    `elsewhere`: another machine trains."""
    if not elsewhere:
        refuse_optimizer(spec)
    run = runtime.flow_run.id
    return resolved(settings, Store(settings), spec, f"{RUNS}/{run}.start" if run else "")


def data_of(spec: TrainingSpec) -> tuple[TrainingSpec, Split]:
    """The first two steps. The spec then names the data in the store, where any machine finds it."""
    look_for_base(Settings(), spec.base_model, spec.peft_method)
    train, validation = (with_columns(spec.columns, one) for one in (spec.train_data, spec.validation_data))
    data = ingest_task(train, subject="training data")
    held_out = ingest_task(validation, subject="validation data") if validation else None
    split = as_formatted(validate_task(
        data, held_out, spec.num_validation_samples, spec.drop, subject=spec.destination), spec)
    if spec.task_type != "auto" or spec.gate == "not_worse_than_champion":
        scorable_task(spec, split, subject=spec.destination)
    spec = replace(spec, columns="", train_data=address_of(data))
    return replace(spec, validation_data=address_of(held_out) if held_out else ""), split


def pipeline(settings: Settings, spec: TrainingSpec, split: Split, hand_over_to: str = "") -> Version:
    """The other five; or only `pack`, and another deployment's run does them all, these three at once."""
    name = spec.destination
    base = base_task(spec.base_model, subject=name)
    check_same_base(Store(settings), spec, base)
    if spec.prompt_format == "templated":
        refuse_unscorable(Store(settings), spec, split, base)
    about = {"model": base.name.rstrip("/").rsplit("/", 1)[-1], "destination": name, "data": split.digest[:12]}
    reports.tag(**about)
    packed = pack_task(split, base, spec, subject=name)
    reports.show_report("data", reports.data_report(split, packed))
    reports.show_lengths(packed)
    if hand_over_to:
        started = hand_over_task(hand_over_to, spec, subject=hand_over_to)
        told = f"## Handed over\n\n[{started.name}]({run_page(started)}) of {hand_over_to} goes on."
        reports.show_report("handed-over", told)
        return handed_over(started, hand_over_to)

    placement = place(settings, spec, packed, base)
    spec = placement.spec
    listener().expects(placement.forecast)
    about["training"] = training_id(spec, packed, base)  # by this the gateway finds the events
    reports.tag(**about)
    reports.show_report("forecast", reports.forecast_report(placement.forecast))
    with ends_in_mlflow(settings, name, about["training"]):
        trained = train_task(placement, packed, base, split, subject=name)
    if trained.training_id != about["training"]:  # a person finished it before its end
        about["training"] = trained.training_id
        reports.tag(**about)
    with ends_in_mlflow(settings, name, trained.training_id), measuring(settings, placement.forecast, trained):
        evaluation = evaluate_task(placement, trained, split, packed, base, subject=name)
        reports.show_evaluation(evaluation)

        version = register_task(spec, trained, evaluation, split, packed, base, subject=name)
        reports.tag(**about, version=version.id)
        deployment = deploy_task(spec, version, evaluation, base, subject=name)
        reports.show_links(settings, version, deployment)
    return version


@contextmanager
def measuring(settings: Settings, expected: Forecast, trained: Trained) -> Iterator[None]:
    """At the end, also of a version that is not deployed: show what each step took beside its forecast, and keep it for
    the next one."""
    try:
        yield
    finally:
        reports.show_report("forecast", reports.forecast_report(expected, trained, step_times()))
        note_measured(settings, to_keep(expected.works, trained, step_times()))


def estimate(spec: TrainingSpec) -> Forecast:
    """The forecast of a training without starting it: the base is tried on a few tokens, then only ingest, validate and
    pack are done."""
    return estimated(Settings(), spec, log.warning)[0]


def estimated(
    settings: Settings, spec: TrainingSpec, note: Callable[[str], object], *, tries_base: bool = True,
) -> tuple[Forecast, Pack]:
    """The same with the packed rows; `note` hears what was found in the data. Without `tries_base`, nothing of the base
    is loaded but its tokenizer."""
    store = Store(settings)
    spec = startable(settings, spec)
    look_for_base(settings, spec.base_model, spec.peft_method)
    base = find_base(settings, spec.base_model)
    check_same_base(store, spec, base)
    alone = try_base(settings, spec, base) if tries_base else None
    train, validation = (with_columns(spec.columns, one) for one in (spec.train_data, spec.validation_data))
    data, held_out = ingest(settings, store, train), ingest(settings, store, validation) if validation else None
    split = as_formatted(validate(
        store, data, held_out, spec.num_validation_samples, spec.drop, processes=settings.threads_for(1)), spec)
    tell(split, spec.drop, note)
    refuse_unscorable(store, spec, split, base)
    packed = find_pack(store, split, base, spec) or pack(settings, store, split, base, spec)
    for said in notes_of(packed, spec):
        note(said)
    return replace(place(settings, spec, packed, base).forecast, one_at_a_time=alone), packed
