"""What happened in a fine-tuning job, and its checkpoints, in OpenAI's shape.

In:   the row of a training and what its events tell      Out: lists, the newest first
An event keeps its id while others come and early ones are left out of the log, so that pages of the list fit together.
"""

from __future__ import annotations

from typing import Any

from deployments.gateway.progress import Known, Told
from deployments.gateway.tables import Training

WARNINGS = ("checkpoint_passed_over", "preempted", "not_repeatable")
ERRORS = ("non_finite",)
FIRST, LAST = "created", "ended"


def events_of(row: Training, known: Known) -> list[dict[str, Any]]:
    """All that is kept of them, the newest first."""
    found = [_event(row, FIRST, row.created_at, "Created.")]
    if row.waits_for and row.completed_at is None:
        found.append(_event(row, "waits", row.created_at, row.waits_for))
    found += [_of_trainer(row, known, told) for told in list(known.told)]
    if row.completed_at is not None:
        said = row.error or f"The job has {'succeeded' if row.status == 'succeeded' else 'ended: ' + row.status}."
        found.append(_event(row, LAST, row.completed_at, said, "error" if row.error else "info"))
    return found[::-1]


def checkpoints_of(row: Training, known: Known) -> list[dict[str, Any]]:
    """All of them, the newest first. The one whose weights the version has bears its name."""
    losses, times = dict(known.losses), dict(known.checkpoints)
    kept = 0
    if row.output_version:
        is_best = row.spec.get("keep_weights") == "best" and bool(known.validations)
        kept = min(known.validations, key=known.validations.__getitem__) if is_best else known.step
        times.setdefault(kept, row.completed_at or row.created_at)
    return [
        {"id": f"ftckpt-{row.id}-{step}", "object": "fine_tuning.job.checkpoint", "created_at": int(times[step]),
         "fine_tuning_job_id": f"ftjob-{row.id}", "step_number": step,
         "fine_tuned_model_checkpoint": f"{row.destination}:{row.output_version}" if step == kept else None,
         "metrics": _metrics(step, losses.get(step), known.validations.get(step))}
        for step in sorted(times, reverse=True)]


def _metrics(step: int, loss: float | None, held_out: float | None) -> dict[str, float]:
    values = {"step": float(step), "train_loss": loss, "valid_loss": held_out}
    return {name: value for name, value in values.items() if value is not None}


def _of_trainer(row: Training, known: Known, told: Told) -> dict[str, Any]:
    name, event = told.event["event"], told.event
    level = "error" if name in ERRORS else "warn" if name in WARNINGS else "info"
    found = _event(row, str(told.number), event["time"], told.line, level)
    if name in ("step", "validation"):
        step = event["step"]
        loss = {"train_loss" if name == "step" else "valid_loss": event["loss"]}
        found |= {"type": "metrics", "data": {"step": step, "total_steps": known.total, **loss}}
    return found


def _event(row: Training, name: str, at: float, message: str, level: str = "info") -> dict[str, Any]:
    return {"id": f"ftevent-{row.id}-{name}", "object": "fine_tuning.job.event", "created_at": int(at),
            "level": level, "message": message, "type": "message", "data": {}}
