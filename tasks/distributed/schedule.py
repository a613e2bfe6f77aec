"""Numbers that are functions of (spec, step) alone: the learning rate, and the seed of a rank's dropout."""

from __future__ import annotations

import math

from infra.spec import TrainingSpec


def learning_rate(spec: TrainingSpec, step: int, steps: int) -> float:
    """Rate of the update after `step` of `steps` finished ones: warm-up, then the schedule down to 0."""
    warmup = math.ceil(spec.warmup_ratio * steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    if spec.lr_schedule == "constant":
        return spec.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    left = 1 - done if spec.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return spec.learning_rate * left


def seed_of(spec: TrainingSpec, step: int, rank: int) -> int:
    """Seed of a rank's dropout masks in a step."""
    return (spec.seed * 1_000_003 + step * 4096 + rank) % (1 << 63)
