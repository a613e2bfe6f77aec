"""Question answering: some facts about people, and a question about one of them. Rows {"prompt", "completion"}.

The answer is a piece of the text, so that a held-out name can only be copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick, shuffled
from deployments.examples.names import Cast

PROMPT = "{facts}\n\nQuestion: {question}\nAnswer:"
FACTS = 3
ASKED: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("{A} lives in {town}.", (("Where does {A} live?", "in {town}"), ("Who lives in {town}?", "{A}"))),
    ("{A} bought {gift} for {price}.",
     (("What did {A} buy?", "{gift}"), ("How much did {A} pay?", "{price}"), ("Who bought {gift}?", "{A}"))),
    ("{A} met {B} at {venue}.", (("Where did {A} meet {B}?", "at {venue}"), ("Who met {B}?", "{A}"))),
    ("{A} will {task} on {day}.", (("When will {A} {task}?", "on {day}"), ("Who will {task}?", "{A}"))),
    ("{A} left the {object} {spot}.",
     (("Where did {A} leave the {object}?", "{spot}"), ("Who left the {object} {spot}?", "{A}"))),
    ("{A} cooks {dish} for {B}.", (("What does {A} cook?", "{dish}"), ("Who gets the {dish}?", "{B}"))),
    ("{A} goes to {town} by {ride}.", (("Where does {A} go?", "to {town}"), ("How does {A} travel?", "by {ride}"))),
)
"""A fact, and what can be asked about it."""


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """Facts of one row share no person and no thing."""
    while True:
        used: set[str] = set()
        told = []
        for fact, questions in shuffled(rng, ASKED)[:FACTS]:
            draw = Draw(rng, cast)
            draw.used = used
            told.append((draw.fill(fact), draw, questions))
        _, draw, questions = pick(rng, told)
        asked, answer = (draw.fill(text) for text in pick(rng, questions))
        facts = " ".join(text for text, _, _ in told)
        yield {"prompt": PROMPT.format(facts=facts, question=asked), "completion": f" {answer}"}
