"""Chatbot: somebody books something, the assistant asks and confirms. Rows {"messages"}.

Every message of the assistant is learned; the last one, which has to repeat what was said, is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick
from deployments.examples.names import Cast

OPENINGS = (
    "Hello, this is {A}. I would like to book a table at {venue}.", "Hi! A table at {venue} for {A}, please.",
    "Good evening, {A} here. Is there a table at {venue}?")
ASKS = "Hello {A}! For which day and time, and who else is coming?"
DETAILS = (
    "{day} at {time}. {B} is coming too.", "{B} and I come on {day}, {time}.", "On {day}, please, at {time}, with {B}.")
CONFIRMS = "Thank you, {A}. The table at {venue} is booked for you and {B} on {day} at {time}."
CHANGES = ("Sorry, better {day2}.", "Could we come on {day2} instead?", "{B} has no time, let's take {day2}.")
CHANGED = "No problem, {A}. I changed it: you and {B} on {day2} at {time}, at {venue}."


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """Half of the callers change the day."""
    while True:
        draw = Draw(rng, cast)
        turns = [pick(rng, OPENINGS), ASKS, pick(rng, DETAILS), CONFIRMS]
        if rng.random() < 0.5:
            turns += [pick(rng, CHANGES), CHANGED]
        yield {"messages": [
            {"role": "assistant" if i % 2 else "user", "content": draw.fill(text)} for i, text in enumerate(turns)]}
