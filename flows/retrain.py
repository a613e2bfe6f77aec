"""Train again, if there is something new to learn: started by a schedule or by the event `dataset.updated`.

In:   Parameters                Out: the new Version, or None and a run that is shown as Skipped
The data is brought in and split as in any training; if the newest version of the destination learned from the same
split and was deployed or judged not good enough, nothing more is done. Of data in shards all are taken, and the run
says how many are new. Dies half-way: like a training, it goes on where it was.
Run alone:
    from flows.retrain import retrain
    retrain({"train_data": "s3://bucket/chats.jsonl", "base_model": "models/llama", "destination": "acme/summarizer"})
Send the event:
    from prefect.events import emit_event
    emit_event("dataset.updated", resource={"prefect.resource.id": "anneal.dataset.chats"},
               payload={"training": {"train_data": "s3://bucket/chats.jsonl", ...}})
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.finetune import data_of, pipeline
from flows.parameters import Parameters, guarded
from infra.records import Version
from infra.settings import Settings
from infra.storage.store import Store
from tasks.news import newest_task, shard_news
from tasks.runs.attempt import attempt, cancelled
from tasks.ui import reports


@guarded
@flow(name="retrain", flow_run_name="retrain {training.destination}", persist_result=False)
def retrain(training: Parameters, hand_over_to: str = "") -> Version | State[Any]:
    """Train again if the data changed since the destination's newest version.

    Args:
        training: What to train, on what, and where it goes.
        hand_over_to: Deployment that goes on after `pack`, such as finetune/gpu; empty: this run does everything.
    """
    settings = Settings()
    store = Store(settings)
    with attempt(settings, store):
        spec, split = data_of(training.spec())
        newest = newest_task(spec.destination, spec.destination)
        news = shard_news(store, split, newest)
        if newest is not None and newest.data_digest == split.digest and newest.is_settled:
            reason = (f"version {newest.number} of {spec.destination} learned from the same "
                      f"{split.train_rows} rows (digest {split.digest[:12]}{news and f'; {news}'})")
            reports.show("skipped", f"## Not trained again\n\nNothing is new: {reason}.")
            return Completed(name="Skipped", message=f"Nothing is new: {reason}.")
        if news:
            reports.show("news", f"## New data: {news}\n\n{split.train_rows} training rows in all.")
            get_run_logger().info("%s, %d training rows in all", news, split.train_rows)
        return pipeline(settings, spec, split, hand_over_to)
    return cancelled()
