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
from dataclasses import replace

from prefect import flow

from flows.parameters import Parameters, guarded
from infra.models.base_models import find_base, look_for_base
from infra.records import Split, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.data.datasets import address_of
from tasks.deploy import deploy_task
from tasks.evaluate import evaluate_task, refuse_unscorable, scorable_task
from tasks.ingest import base_task, ingest, ingest_task
from tasks.launcher.forecast import Forecast, forecast
from tasks.pack import find_pack, pack, pack_task
from tasks.register import register_task
from tasks.runs.attempt import attempt, cancelled
from tasks.runs.start import hand_over_task, handed_over, run_page
from tasks.train import train_task
from tasks.ui import reports
from tasks.validate import tell, validate, validate_task


@guarded
@flow(name="finetune", flow_run_name="finetune {training.destination}", persist_result=False)
def finetune(training: Parameters, hand_over_to: str = "") -> Version:
    """Ingest, validate, pack, train, evaluate, register, deploy.

    Args:
        training: What to train, on what, and where it goes.
        hand_over_to: Deployment that goes on after `pack`, such as finetune/gpu for a run on a machine without GPUs;
            empty: this run does everything.
    """
    settings = Settings()
    with attempt(settings, Store(settings)):
        return pipeline(settings, *data_of(training.spec()), hand_over_to)
    return cancelled()


def data_of(spec: TrainingSpec) -> tuple[TrainingSpec, Split]:
    """The first two steps. The spec then names the data in the store, where any machine finds it."""
    look_for_base(Settings(), spec.base_model)
    data = ingest_task(spec.train_data, subject="training data")
    held_out = ingest_task(spec.validation_data, subject="validation data") if spec.validation_data else None
    split = validate_task(data, held_out, spec.num_validation_samples, spec.drop, subject=spec.destination)
    if spec.task_type != "auto":
        scorable_task(spec, split, subject=spec.destination)
    return replace(spec, train_data=address_of(data), validation_data=address_of(held_out) if held_out else ""), split


def pipeline(settings: Settings, spec: TrainingSpec, split: Split, hand_over_to: str = "") -> Version:
    """The other five; or only `pack`, and another deployment's run does them all, these three at once."""
    name = spec.destination
    base = base_task(spec.base_model, subject=name)
    reports.tag(model=base.name.rstrip("/").rsplit("/", 1)[-1], destination=name, data=split.digest[:12])
    packed = pack_task(split, base, spec, subject=name)
    reports.show_report("data", reports.data_report(split, packed))
    reports.show_lengths(packed)
    if hand_over_to:
        started = hand_over_task(hand_over_to, spec, subject=hand_over_to)
        told = f"## Handed over\n\n[{started.name}]({run_page(started)}) of {hand_over_to} goes on."
        reports.show_report("handed-over", told)
        return handed_over(started, hand_over_to)

    expected = forecast(settings, spec, packed, base)
    reports.show_report("forecast", reports.forecast_report(expected))
    trained = train_task(spec, packed, base, subject=name)
    reports.show_report("actual", reports.forecast_report(expected, trained))

    evaluation = evaluate_task(spec, trained, split, packed, base, subject=name)
    reports.show_report("rouge", reports.rouge_report(evaluation))

    version = register_task(spec, trained, evaluation, split, packed, base, subject=name)
    deployment = deploy_task(spec, version, evaluation, base, subject=name)
    reports.show_links(settings, version, deployment)
    return version


def estimate(spec: TrainingSpec) -> Forecast:
    """The forecast of a training without starting it: only ingest, validate and pack are done."""
    settings = Settings()
    store = Store(settings)
    look_for_base(settings, spec.base_model)
    data = ingest(settings, store, spec.train_data)
    held_out = ingest(settings, store, spec.validation_data) if spec.validation_data else None
    split = validate(store, data, held_out, spec.num_validation_samples, spec.drop, processes=settings.threads_for(1))
    tell(split, spec.drop, logging.getLogger(__name__).warning)
    refuse_unscorable(store, spec, split)
    base = find_base(settings, spec.base_model)
    packed = find_pack(store, split, base, spec) or pack(settings, store, split, base, spec)
    return forecast(settings, spec, packed, base)
