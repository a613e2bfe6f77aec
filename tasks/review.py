"""Look at the clean rows: copies, near duplicates, leaks, doubtful ones; and which of them are to be dropped.

In:   surveys of the training data, and of the validation data if there is one     Out: a Review
Rows are counted through from 0, those of the validation data behind those of the training data. Only training rows
are ever dropped: the validation data says what is to be measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from infra.spec import Drop
from tasks import rows as check
from tasks.flags import flags_of
from tasks.near import Sketches, grams_of
from tasks.survey import Notes, Row, Survey, common_opening, text_of

COPY = "rows that repeat an earlier one word for word"
NEAR = "rows that nearly repeat an earlier one"
LEAK = "training rows whose prompt stands in the validation data"
NEAR_LEAK = "training rows that nearly repeat one of the validation data"
HELD_OUT_NEAR = "held-out rows that nearly repeat a training row"
DROPS: dict[Drop, tuple[str, ...]] = {
    "none": (), "duplicates": (COPY,), "leaks": (LEAK,), "duplicates+leaks": (COPY, LEAK), "all": ()}
"""What is dropped by which choice; `all` is everything that a row was found guilty of."""


@dataclass
class Review:
    """What was found in the rows."""

    notes: Notes = field(default_factory=Notes)
    compared: int = 0
    """Rows that were looked at for near duplicates."""
    repeats: dict[int, int] = field(default_factory=dict)
    """{row: the first row that it nearly repeats}"""
    reasons: dict[int, str] = field(default_factory=dict)
    """{training row that is dropped: why}"""
    doubts: dict[int, list[str]] = field(default_factory=dict)
    rows: int = 0
    spaced: int = 0
    """Rows whose prompt and completion keep a distance already."""

    def first_of(self, row: int) -> int:
        """The first row that says nearly the same."""
        return self.repeats.get(row, row)


def review(train: Survey, others: Survey | None, drop: Drop) -> Review:
    """Look at all rows, in order."""
    found = Review()
    opening = train.opening or ""
    if others:
        opening = common_opening(opening, others.opening or "")
    _look(chain(train.rows(), others.rows() if others else ()), opening, len(train.prompts), found)
    asked = set(others.prompts) if others else set()
    measured = {first for row, first in found.repeats.items() if row >= len(train.prompts)}
    seen: set[bytes] = set()
    for row, (prompt, content) in enumerate(zip(train.prompts, train.contents, strict=True)):
        reasons = [COPY] if content in seen else []
        if prompt in asked:
            reasons.append(LEAK)
        elif measured and found.first_of(row) in measured:
            reasons.append(NEAR_LEAK)
        if content not in seen and row in found.repeats:
            reasons.append(NEAR)
        seen.add(content)
        reasons += found.doubts.get(row, [])
        for reason in reasons:
            found.notes.add(reason, train.where(row))
        wanted = reasons if drop == "all" else [reason for reason in reasons if reason in DROPS[drop]]
        if wanted:
            found.reasons[row] = wanted[0]
    return found


def note_held_out(found: Review, train: Survey, held_out: set[bytes]) -> None:
    """Note rows that are split off, while rows that say nearly the same are trained on."""
    alike = sorted(({*found.repeats, *found.repeats.values()}) - found.reasons.keys())
    taught = {found.first_of(row) for row in alike if train.prompts[row] not in held_out}
    for row in alike:
        if train.prompts[row] in held_out and found.first_of(row) in taught:
            found.notes.add(HELD_OUT_NEAR, train.where(row))


def _look(rows: Iterable[Row], opening: str, end: int, found: Review) -> None:
    """What shows in the texts. Rows from `end` on are not doubted.

    Near duplicates are looked for behind what all rows begin with: an instruction that all share makes none alike.
    """
    shared = len(f"{opening}.".split()) - 1
    sketches = Sketches()
    for number, row in enumerate(rows):
        found.rows += 1
        found.spaced += _brings_space(row)
        words = text_of(row).lower().split()
        grams = grams_of(words)
        sketches.add(number, grams[shared:])
        if number < end and (doubts := flags_of(check.texts_of(row.value, row.kind), words, grams)):
            found.doubts[number] = doubts
    found.compared, found.repeats = len(sketches), sketches.repeats()


def _brings_space(row: Row) -> bool:
    """True if prompt and completion already keep a distance."""
    return row.kind == "prompt" and (row.value["prompt"][-1:].isspace() or row.value["completion"][:1].isspace())
