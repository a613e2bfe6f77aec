"""How long the steps after `pack` will take: start-up of the ranks, training, evaluation, registering, deploying.

In:   the forecast's figures, what this machine measured before (tasks/launcher/measured.py)
Out:  a Span for each step, and whether it was measured; after the run, what to keep of it
Without a measurement: training by the table of devices (tasks/launcher/device_table.py), the others by figures that
were seen on CPUs and one GPU; the intervals are wide, and the forecast says that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from infra.records import Base, Pack, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.launcher.measured import Measured, Span, expected_span, read_measured

Phase = Literal["start-up", "train", "evaluate", "register", "deploy"]
UNKNOWN_TRAINING = (0.5, 4.0)
"""Times the table's figure: the ends of the interval for a training whose like was not measured here."""
UNMEASURED: dict[Phase, Span] = {
    "start-up": Span(4, 15, 90), "register": Span(1, 5, 30), "deploy": Span(1, 8, 90)}
"""Seconds. Start-up loads torch and the base; deploying loads the base into the predictor."""
EVALUATION_START = Span(5, 20, 90)
ANSWER_STEP_S = Span(0.004, 0.03, 0.15)
"""One token of a batch of answers: from a small model on a GPU to one of 7 billion weights on a CPU that is busy."""
BATCH_ROWS = 16
"""Answered at a time (tasks/distributed/generate.py), by the tuned model and then by its base."""
NOTHING = Span(0, 0, 0)


@dataclass(frozen=True)
class Work:
    """What a step's time is compared by: how it is like others, and how much it has to do."""

    like: str
    amount: float


def works_of(
    settings: Settings, spec: TrainingSpec, pack: Pack, base: Base, device: str, ranks: int, tokens: int,
) -> dict[Phase, Work]:
    """The work of each step. `spec` is settled: no `auto` in precision and compile_layers."""
    where = f"{device} x{ranks}, {base.digest[:16]}, {spec.peft_method}, {spec.precision}"
    cut = f"compiled {spec.compile_layers}, again {spec.activation_checkpointing}, packed {spec.pack_sequences}"
    answered = min(pack.validation.examples, spec.num_evaluation_samples)
    steps = -(-answered // (BATCH_ROWS * ranks)) * spec.max_new_tokens
    found: dict[Phase, Work] = {
        "start-up": Work(where, 1), "train": Work(f"{where}, {cut}", tokens),
        "evaluate": Work(f"{where}, {spec.task_type}", steps), "register": Work(where, 1)}
    if spec.deploy and settings.predictor:
        found["deploy"] = Work(where, 1)
    return found


def spans_of(settings: Settings, works: Mapping[Phase, Work], table_s: float | None) -> tuple[dict[Phase, Span], bool]:
    """Seconds of each step, and whether all that counts was measured. `table_s`: the training by the table of devices;
    without it and without a measurement nothing is known of the whole."""
    known, found, measured = read_measured(settings), dict[Phase, Span](), True
    for phase, work in works.items():
        span = expected_span(known, phase, work.like, work.amount)
        if span is None and phase in ("train", "evaluate"):
            measured = False
        span = span or guessed(phase, work, table_s)
        if span is None:
            return {}, False
        found[phase] = span
    return found, measured


def guessed(phase: Phase, work: Work, table_s: float | None) -> Span | None:
    """Seconds of a step whose like was not measured here; None where even the table does not know."""
    if phase == "train":
        low, high = UNKNOWN_TRAINING
        return None if table_s is None else Span(low * table_s, table_s, high * table_s)
    if phase == "evaluate":
        return Span(*(begin + 2 * work.amount * each
                      for begin, each in zip(EVALUATION_START, ANSWER_STEP_S, strict=True)))
    return UNMEASURED[phase]


def whole(spans: Mapping[Phase, Span]) -> Span:
    """All of them together."""
    return Span(*(sum(each) for each in zip(*spans.values(), strict=True))) if spans else NOTHING


def taken_by(trained: Trained, times: Mapping[str, float]) -> dict[Phase, float]:
    """Seconds that each step really took; those that an earlier run had done are not there."""
    found: dict[Phase, float] = {}
    if "train" in times:
        found = {"start-up": max(times["train"] - trained.seconds, 0.0), "train": trained.seconds}
    later: tuple[Phase, ...] = ("evaluate", "register", "deploy")
    return found | {phase: times[phase] for phase in later if phase in times}


def to_keep(works: Mapping[Phase, Work], trained: Trained, times: Mapping[str, float]) -> list[Measured]:
    """What the next forecast learns of this run. A training that was resumed took the time of several processes,
    one that a person finished did less."""
    taken = taken_by(trained, times)
    skipped: tuple[Phase, ...] = ("start-up", "train") if trained.resumed_from or trained.planned_steps else ()
    return [Measured(step=phase, like=works[phase].like, work=works[phase].amount, seconds=seconds)
            for phase, seconds in taken.items() if phase in works and phase not in skipped]
