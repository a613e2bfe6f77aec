"""Show a running training in the Prefect UI: percent, curves, log lines; and how far its data is read.

The events are the truth (events.jsonl); what is shown here is a view that may miss some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import TypeVar
from uuid import UUID

from prefect.artifacts import update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.progress import Throttle, price_in_words
from infra.run_listener import listener
from tasks.data.streams import ProgressListener, ReadProgress
from tasks.distributed.events import Event, StepEvent
from tasks.ui.artifacts import put
from tasks.ui.charts import Panel, curves, picture_of

log = logging.getLogger(__name__)
T = TypeVar("T")
SHOW_EVERY_S = 2.0
CURVE_EVERY_S = 60.0


def if_it_can(show: Callable[[], T], *, at_once: bool = False) -> T | None:
    """Show something in Prefect's UI; a server that is away costs the view, never the training.

    `at_once`: without the client's retries, for whoever watches ranks meanwhile and must not be silent.
    """
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}) if at_once else nullcontext():
            return show()
    except Exception as error:  # noqa: BLE001  (whatever the client raises: the work goes on)
        log.warning("not shown error=%s", error)
        return None


class Curves:
    """What a training's events say over its steps."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._speeds: dict[int, float] = {}
        self._validation: dict[int, float] = {}

    def see(self, event: Event) -> None:
        """Take one event of the trainer."""
        if event["event"] == "validation":
            self._validation[event["step"]] = event["loss"]
        if event["event"] == "step":
            self.losses[event["step"]] = event["loss"]
            self._rates[event["step"]] = event["lr"]
            self._speeds[event["step"]] = event["tokens_per_s"]

    def panels(self) -> list[Panel]:
        """Loss, learning rate and speed."""
        return [
            Panel(title="Loss of each step, and validation loss", unit="nats per token", line=self.losses,
                  dots=self._validation),
            Panel(title="Learning rate", unit="learning rate", line=self._rates),
            Panel(title="Tokens per second since the launch, without padding", unit="tokens per second",
                  line=self._speeds)]


class RunProgress:
    """A progress artifact that follows events; the curve is drawn now and then and at the end."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._log = get_run_logger()
        self._artifact: UUID | None = None
        self._curves: UUID | None = None
        self._seen = Curves()
        self._show_now, self._draw_now = Throttle(SHOW_EVERY_S), Throttle(CURVE_EVERY_S)

    def __enter__(self) -> RunProgress:
        self._artifact = if_it_can(lambda: put(f"{self._key}-progress", "progress", 0.0, "Optimizer steps done"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._draw(at_once=False)

    def see(self, event: Event) -> None:
        """Take one event of the trainer."""
        listener().trains(event)
        if event["event"] not in ("step", "pause"):
            details = " ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}"
                               for k, v in event.items() if k not in ("event", "time"))
            self._log.info("%s %s", event["event"], details)
        self._seen.see(event)
        if event["event"] == "done":
            self._show(event["step"], event["step"], "done")
        if event["event"] == "step":
            if self._show_now.is_due():
                self._log.info(
                    "step %(step)d/%(total)d loss=%(loss).4f lr=%(lr).3g tokens_per_s=%(tokens_per_s).0f "
                    "eta_s=%(eta_s).0f", event)
                self._show(event["step"], event["total"], standing(event))
            if self._draw_now.is_due():
                self._draw(at_once=True)

    def _show(self, step: int, total: int, about: str) -> None:
        if self._artifact is not None:
            artifact = self._artifact
            if_it_can(lambda: update_progress_artifact(
                artifact_id=artifact, progress=100.0 * step / total, description=about), at_once=True)

    def _draw(self, *, at_once: bool) -> None:
        if self._seen.losses:
            self._curves = if_it_can(
                lambda: drawn(self._curves, picture_of(curves(self._seen.panels())), f"{self._key}-curves"),
                at_once=at_once) or self._curves


def drawn(artifact: UUID | None, picture: str, key: str) -> UUID:
    """The artifact with that picture: a new one only where there is none, because the UI shows each as a card."""
    if artifact is None:
        return put(key, "image", picture, "Loss, learning rate and speed of each step; validation loss")
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=picture))
    return artifact


class ReadingShown(ProgressListener):
    """Log lines about data that takes long to read; a progress artifact too, where its size is known."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._log = get_run_logger()
        self._artifact: UUID | None = None

    def __enter__(self) -> ReadingShown:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None and self._artifact is not None:
            self._show(1.0, "Read")

    def say(self, line: str) -> None:
        """Tell it in the run's log."""
        self._log.info("%s", line)

    def see(self, standing: ReadProgress) -> None:
        """Show how far it is."""
        self.say(str(standing))
        listener().gets_on(standing.share or 0.0, 1.0, str(standing))
        if standing.share is not None:
            self._show(standing.share, str(standing))

    def _show(self, share: float, about: str) -> None:
        if (artifact := self._artifact) is not None:
            if_it_can(lambda: update_progress_artifact(
                artifact_id=artifact, progress=100.0 * share, description=about))
        else:
            self._artifact = if_it_can(lambda: put(f"{self._key}-progress", "progress", 100.0 * share, about))


def standing(event: StepEvent) -> str:
    """Where a training is, in a line: step, loss, learning rate, speed, time left, price so far."""
    minutes, seconds = divmod(round(event["eta_s"]), 60)
    left = f"{minutes} min" if minutes >= 10 else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    price = f", {price_in_words(event['usd'])} so far" if event.get("usd") else ""
    return (f"step {event['step']} of {event['total']}, loss {event['loss']:.4f}, learning rate {event['lr']:.3g}, "
            f"{event['tokens_per_s']:.0f} tokens/s, {left} left{price}")
