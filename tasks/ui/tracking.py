"""A training in MLflow while it runs: its events become metrics over steps, and its run ends as the training did.

One thread of the flow's process writes, every few seconds; ranks never speak with MLflow. What MLflow does not take
while it is away stays here and follows later; what is still missing at the end is written when the version is
registered, from events.jsonl. A step that an earlier process has written is not written again.
Dies half-way: the run stays RUNNING; whoever goes on with the training goes on with the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from infra.errors import AnnealError, Preempted
from infra.models.registry import Registry
from infra.models.system_metrics import SystemMetrics
from infra.models.tracking import Context, DataFile, Ending, Point, Tracked
from infra.progress import Throttle
from infra.records import Base, Pack, Split
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import rows_name
from tasks.distributed.events import Event
from tasks.runs.fence import is_cancelled, standing_of
from tasks.ui.charts import curves
from tasks.ui.progress import Curves, if_it_can

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITE_EVERY_S, SAMPLE_EVERY_S = 5.0, 10.0
END_S = 10.0
"""How long the end of a training waits for MLflow."""
METRICS = {
    "step": {"loss": "loss", "lr": "learning_rate", "grad_norm": "grad_norm", "tokens_per_s": "tokens_per_s",
             "memory_bytes": "memory_bytes", "mfu": "mfu", "usd": "cost_usd"},
    "validation": {"loss": "validation_loss", "perplexity": "validation_perplexity"},
}
"""By event: which of its fields is which metric."""
log = logging.getLogger(__name__)
_tracked: set[tuple[str, str]] = set()
"""Trainings, with their destinations, whose run this process has set RUNNING."""


def tracked(spec: TrainingSpec, training_id: str, split: Split, pack: Pack, base: Base, store_root: str) -> Tracked:
    """What the run of a training says from its start."""
    files: tuple[tuple[str, Context, int], ...] = (
        ("train", "training", split.train_rows), ("validation", "validation", split.validation_rows))
    return Tracked(
        destination=spec.destination, training_id=training_id,
        params={"base_model": base.name,
                **{name: str(value) for name, value in spec.numbers("weights").items()}},
        tags={"data_digest": split.digest, "base_digest": base.digest, "pack_digest": pack.digest},
        data=[DataFile(name=f"{spec.destination} {name}", uri=f"{store_root}/{split.folder}/{rows_name(name)}",
                       digest=split.digest, rows=rows, context=context)
              for name, context, rows in files if rows])


def points_of(events: Iterable[Event], written: dict[str, int]) -> list[Point]:
    """The metrics of events that are not in the run yet; `written` says how far it is, and is brought up."""
    found = []
    for event in events:
        if event["event"] != "step" and event["event"] != "validation":
            continue
        kind, step, fields = event["event"], event["step"], dict[str, Any](event)
        if step > written.get(kind, 0):  # a resumed training repeats the steps after its checkpoint
            written[kind] = step
            found += [Point(metric, fields[field], round(event["time"] * 1000), step)
                      for field, metric in METRICS[kind].items() if field in fields]
    return found


class EventLog:
    """A training's run, and how far its metrics are. Raises Transient when MLflow does not answer."""

    def __init__(self, registry: Registry, about: Tracked) -> None:
        _tracked.add((about.destination, about.training_id))
        self._runs = registry.runs
        self.id = self._runs.start(about)
        self._written, self.began_ms = self._runs.standing(self.id)

    def write(self, events: Iterable[Event], samples: Iterable[Point] = ()) -> None:
        """Write what the run does not have yet, and how busy the machine is."""
        written = dict(self._written)
        points = [*points_of(events, written), *samples]
        if points:
            self._runs.log(self.id, points, written)
        self._written = written


def curves_of(events: list[Event]) -> Figure | None:
    """Loss, learning rate and speed of a training as a picture; None without a step."""
    seen = Curves()
    for event in events:
        seen.see(event)
    return curves(seen.panels()) if seen.losses else None


class RunWriter(threading.Thread):
    """Writes a training's events to its run, until the block that it is used in ends."""

    def __init__(self, settings: Settings, about: Tracked) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._settings, self._about = settings, about
        self._events: list[Event] = []
        self._guard, self._over = threading.Lock(), threading.Event()
        self._log: EventLog | None = None
        self._machine: SystemMetrics | None = None
        self._sample_now = Throttle(SAMPLE_EVERY_S)
        self._is_away = False

    def __enter__(self) -> RunWriter:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        self.join(END_S)

    def see(self, event: Event) -> None:
        """Take one event of the trainer; returns at once."""
        if event["event"] in METRICS:
            with self._guard:
                self._events.append(event)

    def run(self) -> None:
        """Write what has come since the last time, again and again."""
        last = False
        while not last:
            try:
                self._write()
                self._is_away = False
            except AnnealError as error:
                if not self._is_away:  # once for each outage
                    log.warning("not in MLflow yet, training goes on: %s", str(error).splitlines()[0])
                self._is_away, self._log = True, None
            last = self._over.is_set()
            self._over.wait(WRITE_EVERY_S)

    def _write(self) -> None:
        if self._log is None:
            self._log = EventLog(Registry(self._settings), self._about)
        with self._guard:
            events = list(self._events)
        self._log.write(events, self._sample(self._log.began_ms))
        with self._guard:
            del self._events[:len(events)]

    def _sample(self, began_ms: int) -> list[Point]:
        """Over the seconds since the run began; none where MLflow's own switch is off."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as SWITCH

        if not self._sample_now.is_due() or (SWITCH.is_set() and not SWITCH.get()):
            return []
        self._machine = self._machine or SystemMetrics()
        now_ms = round(time.time() * 1000)
        return self._machine.sample(now_ms, (now_ms - began_ms) // 1000)


def goes_on_as(settings: Settings, about: Tracked, training_id: str) -> None:
    """A training that was finished before its end goes on under the id of its weights, and so does its run. With MLflow
    away it has a new one; the whole training takes the first."""
    _tracked.add((about.destination, training_id))
    if_it_can(lambda: Registry(settings).runs.rename(about.destination, about.training_id, training_id))


@contextmanager
def ends_in_mlflow(settings: Settings, destination: str, training_id: str) -> Iterator[None]:
    """Around all that makes a training a version: where it fails or is cancelled, the run says so. MLflow that is away
    costs the note, not the error."""
    try:
        yield
    except BaseException as error:
        ending = ending_of(error)
        if ending is not None and (destination, training_id) in _tracked:
            note = threading.Thread(target=lambda: if_it_can(
                lambda: Registry(settings).runs.end(destination, training_id, ending)), daemon=True)
            note.start()
            note.join(END_S)
        raise


def ending_of(error: BaseException) -> Ending | None:
    """How a training ended that ends with that; None: it goes on in another process."""
    if isinstance(error, Exception) and not isinstance(error, Preempted):
        return "KILLED" if is_cancelled() else "FAILED"
    if isinstance(error, KeyboardInterrupt) or is_cancelled():
        return "KILLED"
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return "KILLED"  # nobody starts it again
    flow_run = context.flow_run
    with get_client(sync_client=True) as client:
        now = if_it_can(lambda: client.read_flow_run(flow_run.id), at_once=True)
    return "KILLED" if now is not None and standing_of(now, now.run_count) == "cancelled" else None
