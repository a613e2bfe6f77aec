"""Write the demo's dialogue-summary set: messenger conversations and one- or two-sentence summaries.

In:   a seed     Out: rows {"prompt", "completion"}; the splits share no person, town or venue
Leaves FOLDER/train.jsonl and FOLDER/test.jsonl; rerun after a crash, the same seed gives the same bytes.
Every draw is `Random.random()`, the one method whose sequence Python promises to keep across versions.
Run alone: python -m deployments.examples.dialogues FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

from deployments.examples import phrases
from deployments.examples.names import TEST, TRAIN, Cast
from deployments.examples.scenes import SCENES, Scene

T = TypeVar("T")

PROMPT = "Summarize the conversation.\n\n{dialogue}\n\nSummary:"
MIN_UTTERANCES, MAX_UTTERANCES = 5, 12
SLOT = re.compile(r"\{(\w+?)(\d?)('?)\}")


@dataclass(kw_only=True, slots=True)
class Conversation:
    """One plot, played: `lines` are (speaker, utterance); `facts` maps a slot of the plot to its value."""

    lines: list[tuple[str, str]]
    summary: str
    facts: dict[str, str] = field(default_factory=dict)

    def dialogue(self) -> str:
        return "\n".join(f"{speaker}: {utterance}" for speaker, utterance in self.lines)


# ---- rows


def train_rows(n: int = 3000, seed: int = 0) -> Iterator[dict[str, str]]:
    return _rows(n, seed, TRAIN)


def test_rows(n: int = 60, seed: int = 2) -> Iterator[dict[str, str]]:
    return _rows(n, seed, TEST)


def write(folder: Path) -> tuple[Path, Path]:
    """Write train.jsonl and test.jsonl with the default sizes and seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write_jsonl(train, train_rows())
    write_jsonl(test, test_rows())
    return train, test


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(n: int, seed: int, cast: Cast) -> Iterator[dict[str, str]]:
    """Plots come in shuffled rounds, so that every split holds each of them about equally often."""
    rng = Random(seed)
    round_: list[Scene] = []
    for _ in range(n):
        round_ = round_ or shuffled(rng, SCENES)
        conversation = play(rng, cast, round_.pop())
        prompt = PROMPT.format(dialogue=conversation.dialogue())
        yield {"prompt": prompt, "completion": " " + conversation.summary}


# ---- one conversation


def play(rng: Random, cast: Cast, scene: Scene) -> Conversation:
    """Play one plot with people and places of `cast`."""
    draw = Draw(rng, cast)
    speakers = [draw.value(role, "", "") for role in scene.roles()]
    casual = {name: rng.random() < 0.5 for name in speakers}
    lines = [
        (draw.value(turn.role, "", ""), _typo(rng, pick(rng, turn.wordings)))
        for turn in scene.turns
        if not turn.optional or rng.random() < 0.5
    ]
    lines = _chatter(rng, speakers, lines, draw)
    filled = [(name, _style(rng, draw.fill(text), casual.get(name, True))) for name, text in lines]
    summary = draw.fill(scene.summary)
    return Conversation(lines=filled, summary=summary[0].upper() + summary[1:], facts=draw.facts)


class Draw:
    """The values of one conversation: a slot keeps its value, two slots of one pool never share one."""

    def __init__(self, rng: Random, cast: Cast) -> None:
        self.rng, self.cast = rng, cast
        self.facts: dict[str, str] = {}
        self.used: set[str] = set()

    def fill(self, text: str) -> str:
        return SLOT.sub(lambda match: self.value(*match.groups()), text)

    def value(self, pool: str, digit: str, third: str) -> str:
        slot = pool + digit
        if slot not in self.facts:
            values = self._pool(pool)
            self.facts[slot] = pick(self.rng, [v for v in values if v not in self.used])
            self.used.add(self.facts[slot])
            if pool in ("A", "B", "C", "N"):  # people of one conversation differ in their first letter
                self.used.update(name for name in values if name[0] == self.facts[slot][0])
        first, _, theirs = self.facts[slot].partition(" ~ ")
        return theirs if third else first

    def _pool(self, pool: str) -> Sequence[str]:
        named = {"town": self.cast.towns, "venue": self.cast.venues}
        return named.get(pool) or phrases.POOLS.get(pool) or self.cast.people


def _chatter(
    rng: Random, speakers: list[str], lines: list[tuple[str, str]], draw: Draw
) -> list[tuple[str, str]]:
    """Pad a plot with small talk, mostly in front, without passing the longest length allowed."""
    x, y = shuffled(rng, speakers)[:2]
    front: list[tuple[str, str]] = []
    if rng.random() < 0.85:
        first, second = pick(rng, phrases.OPENERS)
        front = [(x, first), (y, second)]
    elif rng.random() < 0.7:
        front = [(x, pick(rng, phrases.GREETINGS))]
    front = [(name, text.replace("{X}", x).replace("{Y}", y)) for name, text in front]
    room = MAX_UTTERANCES - len(lines)
    lines = front[: max(room, 0)] + lines
    if len(lines) < MAX_UTTERANCES and rng.random() < 0.35:
        lines.insert(1 + int(rng.random() * len(lines)), (pick(rng, speakers), pick(rng, phrases.ASIDES)))
    if len(speakers) == 2 and len(lines) < MAX_UTTERANCES and rng.random() < 0.12:
        bystander = draw.value("C", "", "")
        lines.insert(1 + int(rng.random() * len(lines)), (bystander, pick(rng, phrases.BYSTANDER)))
    while len(lines) < MIN_UTTERANCES or (len(lines) < MAX_UTTERANCES and rng.random() < 0.3):
        lines.append((pick(rng, speakers), pick(rng, phrases.CLOSERS)))
    return lines


def _style(rng: Random, text: str, casual: bool) -> str:
    """Careful writers use capitals and often a full stop; casual ones sometimes add a face."""
    if casual:
        return text + pick(rng, phrases.EMOJI) if rng.random() < 0.06 else text
    stop = "." if text[-1].isalnum() and rng.random() < 0.5 else ""
    return text[0].upper() + text[1:] + stop


def _typo(rng: Random, text: str) -> str:
    """Swap two letters of a word now and then; slots are left alone, facts stay readable."""
    words = text.split(" ")
    spot = int(rng.random() * len(words))
    if rng.random() < 0.04 and len(words[spot]) > 4 and words[spot].isalpha():
        words[spot] = words[spot][:2] + words[spot][3] + words[spot][2] + words[spot][4:]
    return " ".join(words)


def pick(rng: Random, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]


def shuffled(rng: Random, values: Sequence[T]) -> list[T]:
    return [value for _, value in sorted(((rng.random(), v) for v in values), key=lambda pair: pair[0])]


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
