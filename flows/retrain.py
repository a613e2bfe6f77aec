"""Train again, if there is something new to learn: started by a schedule or by the event `dataset.updated`.

In:   Parameters                Out: the new Version, or None and a run that is shown as Skipped or Unchanged
The data is brought in and split as in any training; if the newest version of the destination learned from the same
split and was deployed or judged not good enough, nothing more is done. Of data in shards all are taken, and the run
says how many are new. With `watch`, as `anneal watch` schedules it, the names, sizes and ETags of the files are
compared with those of the last such training first, and nothing is read while they are the same.
Dies half-way: like a training, it goes on where it was.
Run alone:
    from flows.retrain import retrain
    retrain({"train_data": "s3://bucket/chats.jsonl", "base_model": "models/llama", "destination": "acme/summarizer"})
Send the event:
    from prefect.events import emit_event
    emit_event("dataset.updated", resource={"prefect.resource.id": "anneal.dataset.chats"},
               payload={"training": {"train_data": "s3://bucket/chats.jsonl", ...}})
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.finetune import data_of, pipeline, startable
from flows.parameters import Parameters, guarded
from infra.errors import AnnealError, Transient
from infra.files import MANIFEST, Manifest
from infra.models.registry import Origin, Registry
from infra.records import Dataset, Split, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.data.datasets import folder_at
from tasks.data.source_cache import Look, last_look, look, look_name, look_until_settled, note_look, sources_of
from tasks.data.sources import shards_in
from tasks.runs.attempt import survives
from tasks.runs.queries import POSTPONED, UNCHANGED, UNSEEN, other_retraining
from tasks.runs.retries import HOUR_S, step
from tasks.ui import reports
from tasks.validate import split_folder

log = logging.getLogger(__name__)


@guarded
@flow(name="retrain", flow_run_name="retrain {training.destination}", persist_result=False)
@survives
def retrain(
    training: Parameters, hand_over_to: str = "", watch: bool = False, continue_from_champion: bool = False,
) -> Version | State[Any]:
    """Train again if the data changed since the destination's newest version.

    Args:
        training: What to train, on what, and where it goes.
        hand_over_to: Deployment that goes on after `pack`, such as finetune/finetune; empty: this run does everything.
        watch: Compare names, sizes and ETags of the data's files first, and read nothing while they are the same.
        continue_from_champion: Go on from the version that the model answers with, instead of from the base model; a
            model without one begins at the base.
    """
    settings, spec = Settings(), training.spec()
    store = Store(settings)

    def data() -> tuple[TrainingSpec, Split]:
        wanted = from_champion(settings, spec) if continue_from_champion else spec
        return data_of(startable(settings, wanted, elsewhere=bool(hand_over_to)))

    if not watch:
        return trained(settings, store, spec, data(), hand_over_to)[0]
    seen = look_first(settings, store, spec, str(runtime.flow_run.id))
    if isinstance(seen, State):
        return seen
    try:
        learned = data()
    except Transient:  # the source went away after the look; the next look tries again
        store.discard(look_name(spec))
        raise
    end, number = trained(settings, store, spec, learned, hand_over_to)
    with suppress(AnnealError):  # only the number is missing from what the next looks say
        note_look(store, spec, replace(seen, version=number))
    return end


def from_champion(settings: Settings, spec: TrainingSpec) -> TrainingSpec:
    """The spec that goes on from its destination's champion, if there is one."""
    registry, name = Registry(settings), spec.destination
    if spec.base_version or registry.newest(name) is None or registry.number_at("champion", name) is None:
        return spec
    return replace(spec, base_version=f"{name}:champion")


def trained(
    settings: Settings, store: Store, asked: TrainingSpec, data: tuple[TrainingSpec, Split], hand_over_to: str,
) -> tuple[Version | State[Any], int]:
    """Train unless the newest version learned from the same split.

    Returns what the flow returns, and the number of the version that learned from the data; 0 for none yet.
    """
    spec, split = data
    newest = newest_task(asked.destination, asked.destination)
    news = shard_news(store, split, newest)
    if newest is not None and newest.is_settled and is_same_data(store, newest, spec, split):
        reason = (f"version {newest.number} of {asked.destination} learned from the same "
                  f"{split.train_rows} rows (digest {split.digest[:12]}{news and f'; {news}'})")
        reports.show_report("skipped", f"## Not trained again\n\nNothing is new: {reason}.")
        return Completed(name="Skipped", message=f"Nothing is new: {reason}."), newest.number
    if news:
        reports.show_report("news", f"## New data: {news}\n\n{split.train_rows} training rows in all.")
        get_run_logger().info("%s, %d training rows in all", news, split.train_rows)
    version = pipeline(settings, spec, split, hand_over_to)
    return version, version.number if isinstance(version, Version) else 0


def is_same_data(store: Store, newest: Origin, spec: TrainingSpec, split: Split) -> bool:
    """Whether the newest version learned from the same data: the same split, or another one of the same data sets,
    because an option such as num_validation_samples has changed since. `spec` names the data in the store."""
    if newest.data_digest == split.digest:
        return True
    manifest = store.find(f"versions/{newest.id}") if newest.id else None
    made_from = manifest.record.get("made_from", []) if manifest else []
    before = {name for name in made_from if name.startswith("datasets/")}
    return before == {folder_at(address) for address in (spec.train_data, spec.validation_data) if address}


def look_first(
    settings: Settings, store: Store, spec: TrainingSpec, run: str, sleep: Callable[[float], None] = time.sleep,
) -> Look | State[Any]:
    """What the changed files look like, noted as trained on by this run; or the state in which the run ends.

    It is noted before the training, so that data that cannot be trained on is not tried at every look. A run that was
    started again finds its own note, and goes on.
    """
    try:
        before, seen = last_look(store, spec), look(settings, sources_of(spec))
        if seen == before:
            if before.run == run and not before.version:
                return before
            return Completed(name=UNCHANGED, message=unchanged(before))
        with get_client(sync_client=True) as client:
            if other := other_retraining(client, spec.destination, run):
                return Completed(name=POSTPONED, message=f"{seen}. {other!r} is under way; the next look trains on it.")
        settled = look_until_settled(settings, sources_of(spec), sleep)
        if settled is None:
            return Completed(name=POSTPONED, message=f"Files are still being written ({seen} at first).")
        if settled == before:
            return Completed(name=UNCHANGED, message=unchanged(before))
        settled = replace(settled, run=run)
        note_look(store, spec, settled)
        return settled
    except AnnealError as error:
        return Failed(name=UNSEEN, message=f"The data cannot be looked at; the next look tries again. {error}")


def unchanged(before: Look) -> str:
    """Why nothing is trained."""
    if before.version:
        return f"The data has not changed since version {before.version} ({before})."
    return (f"The data has not changed since the last retraining began ({before}). If that one failed, look at its "
            "page, and press Retry there.")


@step("newest version", timeout_s=HOUR_S)
def newest_task(destination: str, subject: str) -> Origin | None:
    """What the destination's newest version learned from; None if there is none."""
    return Registry(Settings()).newest(destination)


def shard_news(store: Store, split: Split, newest: Origin | None) -> str:
    """Such as "5 shards, 2 new and 0 gone since version 3"; empty for one file. Never fails: they are only words."""
    try:
        now = contents(store, split.data) if split.data else []
        if len(now) < 2:
            return ""
        before = contents_of_split(store, newest.data_digest) if newest is not None else []
    except (AnnealError, ValueError) as error:
        log.warning("what is new is not known: %s", error)
        return ""
    if newest is None or not before:
        return f"{len(now)} shards"
    new, gone = (sum(one not in others for one in some) for some, others in ((now, before), (before, now)))
    return f"{len(now)} shards, {new} new and {gone} gone since version {newest.number}"


def contents_of_split(store: Store, digest: str) -> list[str]:
    """The files that a split was made of, by their sha256; none if that is not known any more."""
    text = store.read(f"{split_folder(digest)}/{MANIFEST}")
    split = Split.kept(Manifest.from_json(text).record if text else None)
    return contents(store, split.data) if split and split.data else []


def contents(store: Store, folder: str) -> list[str]:
    """The files that a data set was joined of, by their sha256."""
    if found := shards_in(store, folder):
        return [shard.sha256 for shard in found]
    text = store.read(f"{folder}/{MANIFEST}")
    data = Dataset.kept(Manifest.from_json(text).record if text else None)
    return [data.sha256] if data else []
