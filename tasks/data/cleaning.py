"""Look at the clean rows: copies, near duplicates, leaks, doubtful ones; and which of them are to be dropped.

In:   FileScans of the training data, and of the validation data if there is one     Out: a Review
Rows are counted through from 0, those of the validation data behind those of the training data. Only training rows
are ever dropped: the validation data says what is to be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.records import Finding
from infra.spec import Drop
from tasks.data.quality import scan_quality
from tasks.data.quality_rules import RULES
from tasks.data.scan import SHOWN_PLACES, FileScan, Index, common_opening

COPY = "rows that repeat an earlier one word for word"
NEAR = "rows that nearly repeat an earlier one"
LEAK = "training rows whose prompt stands in the validation data"
NEAR_LEAK = "training rows that nearly repeat one of the validation data"
HELD_OUT_NEAR = "held-out rows that nearly repeat a training row"
REASONS = (COPY, LEAK, NEAR_LEAK, NEAR, *RULES)
"""What a row may be found guilty of; the first that is dropped is the one that is told."""
BITS = {reason: 1 << i for i, reason in enumerate(REASONS)}
DOUBTFUL = sum(BITS[rule] for rule in RULES)
DROPS: dict[Drop, int] = {
    "none": 0, "duplicates": BITS[COPY], "leaks": BITS[LEAK], "duplicates+leaks": BITS[COPY] | BITS[LEAK],
    "all": (1 << len(REASONS)) - 1}
"""What is dropped by which choice."""


@dataclass
class Review:
    """What was found in the rows. Arrays have one element a training row."""

    guilt: NDArray[np.uint16]
    """BITS of each."""
    drops: int
    """BITS for which a row is dropped."""
    compared: NDArray[np.int64]
    """Rows, both files', that were looked at for near duplicates, ascending."""
    first: NDArray[np.int64]
    """Of each of them the first that says nearly the same, or the row itself."""
    rows: int
    spaced: int
    """Rows whose prompt and completion keep a distance already."""
    noted: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """{what: (how many training rows, the first few of them)}, in the order in which they were met first."""
    prompts: int = 0
    """Different ones of the training rows."""
    leaks: int = 0
    """Different prompts that stand in both files."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows are not dropped."""
        kept: NDArray[np.bool_] = (self.guilt & self.drops) == 0
        return kept

    def reason(self, row: int) -> str | None:
        """Why a row is dropped."""
        wanted = int(self.guilt[row]) & self.drops
        return REASONS[(wanted & -wanted).bit_length() - 1] if wanted else None

    def note(self, what: str, rows: NDArray[np.bool_]) -> None:
        """Count the rows, if there are any, and keep the first few."""
        if rows.any():
            self.noted[what] = int(np.count_nonzero(rows)), np.flatnonzero(rows)[:SHOWN_PLACES].tolist()

    def findings(self, places: Mapping[int, str]) -> list[Finding]:
        """All that was noted, by the places of the rows in `noted`."""
        return [Finding(what=what, count=count, first=[places[row] for row in rows])
                for what, (count, rows) in self.noted.items()]

    def accuse(self, rows: NDArray[np.integer] | NDArray[np.bool_], reason: str) -> None:
        """Flag training rows."""
        self.guilt[rows] |= BITS[reason]


def review(
    train: FileScan, others: FileScan | None, index: Index, drop: Drop, *, folder: Path, processes: int,
) -> Review:
    """Look at all rows, in order; the training rows are the first of the index. `folder` takes what is noted of them.

    Near duplicates are looked for behind what all rows begin with: an instruction that all share makes none alike.
    """
    opening = train.opening or ""
    if others:
        opening = common_opening(opening, others.opening or "")
    scanned = scan_quality([train, others] if others else [train], len(f"{opening}.".split()) - 1, processes, folder)
    found = Review(
        guilt_of(scanned.doubts[: train.count]), DROPS[drop], scanned.sketches.rows, scanned.sketches.first(),
        index.rows, scanned.spaced)
    is_train = np.arange(index.rows) < train.count
    for groups in index.contents.groups():
        copies = groups.repeats()
        found.accuse(copies[copies < train.count], COPY)
    for groups in index.prompts.groups():
        taught, asked = groups.count(is_train), groups.count(~is_train)
        found.prompts += int(np.count_nonzero(taught))
        both = np.flatnonzero((taught > 0) & (asked > 0)).tolist()
        found.leaks += len(both)
        for number in both:
            leaks = groups.group(number)
            found.accuse(leaks[leaks < train.count], LEAK)
    _accuse_near(found, train.count)
    for reason, bit in BITS.items():
        found.note(reason, (found.guilt & bit) > 0)
    found.noted = dict(sorted(found.noted.items(), key=lambda one: one[1][1][0]))
    return found


def guilt_of(doubts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """BITS for DOUBTS: the rules stand behind the other reasons, in the same order."""
    return doubts << np.uint16(len(REASONS) - len(RULES))


def note_held_out(found: Review, held: NDArray[np.bool_]) -> None:
    """Note rows that are split off, while rows that say nearly the same are trained on."""
    rows, first = _of_training(found, len(held))
    kept = found.kept[rows]
    noted = np.zeros_like(held)
    noted[rows[kept & held[rows] & np.isin(first, first[kept & ~held[rows]])]] = True
    found.note(HELD_OUT_NEAR, noted)


def _of_training(found: Review, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training rows that were compared, and the first of each."""
    count = np.searchsorted(found.compared, end)
    return found.compared[:count], found.first[:count]


def _accuse_near(found: Review, end: int) -> None:
    """Rows that repeat an earlier one, which is a training row, or say what a row of the validation data says."""
    rows, first = _of_training(found, end)
    repeats = first != rows
    goes = (found.guilt & found.drops & DOUBTFUL) > 0
    if goes[first].any():  # of rows that say nearly the same, the first that is not dropped itself stays
        stays = np.flatnonzero(~goes[rows])[::-1]
        place = np.searchsorted(rows, first)
        chosen = np.arange(len(rows))
        chosen[place[stays]] = stays  # where several are written, the last one, which is the earliest row
        repeats[stays] = chosen[place[stays]] != stays
    found.accuse(rows[repeats & (found.guilt[rows] & BITS[COPY] == 0)], NEAR)
    asked = found.first[len(rows):]
    measured = np.unique(asked[asked < end])
    found.accuse(rows[np.isin(first, measured) & (found.guilt[rows] & BITS[LEAK] == 0)], NEAR_LEAK)
