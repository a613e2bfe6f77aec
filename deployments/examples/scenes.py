"""The plots of the demo conversations, as text: who says what, and the summary that is true at the end.

In:   nothing     Out: SCENES, one Scene per plot
Leaves nothing on disk. Format of a plot: a line "A: one wording | another wording" is one utterance, "?B:"
may be left out, "= ..." is the summary. {A} {B} {C} are speakers, {N} somebody absent, {town} and {venue}
places, every other slot a pool of `phrases.POOLS`; a digit draws a second value ({day2}), an apostrophe
the third-person form ({excuse'}). Most plots change their mind on the way: what counts is said late.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deployments.examples.plots_daily import DAILY
from deployments.examples.plots_plans import PLANS


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One utterance of a plot: its role, its wordings, and whether it may be left out."""

    role: str
    wordings: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One plot."""

    turns: tuple[Turn, ...]
    summary: str

    def roles(self) -> list[str]:
        return sorted({turn.role for turn in self.turns})


TURN = re.compile(r"(\??)([ABC]): (.+)")


def parse(text: str) -> tuple[Scene, ...]:
    """Plots are separated by blank lines.

    Raises:
        ValueError: a line is neither a turn nor a summary, or a plot has no summary.
    """
    return tuple(_scene(block) for block in text.strip().split("\n\n"))


def _scene(block: str) -> Scene:
    *lines, last = block.strip().splitlines()
    if not last.startswith("= "):
        raise ValueError(f"plot {lines[0]!r}: the last line is {last!r}; expected '= summary'")
    return Scene(turns=tuple(_turn(line) for line in lines), summary=last[2:])


def _turn(line: str) -> Turn:
    match = TURN.fullmatch(line)
    if match is None:
        raise ValueError(f"plot line {line!r}: expected 'A: wording | wording'")
    optional, role, wordings = match.groups()
    return Turn(role=role, wordings=tuple(w.strip() for w in wordings.split("|")), optional=bool(optional))


SCENES = parse(PLANS) + parse(DAILY)
