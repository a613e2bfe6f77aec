"""Style: pages of a night porter's log, dry and in the present tense. Rows {"text"}."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick, shuffled
from deployments.examples.names import Cast

HEAD = "Hotel {venue}, {town}. Night log of {day}."
ENTRIES = (
    "{time}. Guest {A} arrives by {ride}, wet, without luggage. Key handed over.",
    "{time}. Guest {A} reports a loss: {object}. Searched. Nothing.",
    "{time}. Found {spot}: {object}, {colour}. Entered in the book of found things.",
    "{time}. Guest {A} asks for {dish}. Kitchen closed. Guest {A} informed.",
    "{time}. Noise from room {number}. Cause: guest {A} and a {thing}. Silence restored.",
    "{time}. Guest {A} complains of {pain}. Advised to {cure}.",
    "{time}. Telephone call for guest {A}. Caller gives no name. Message: none.",
    "{time}. Guests {A} and {B} return from {outing}. In good spirits.",
    "{time}. Guest {A} wishes to leave at once for {town}. No {ride} before morning.",
    "{time}. {A} of the day shift delivers {food} and {food2}. Receipt signed.",
)
CLOSINGS = ("Otherwise quiet. Signed, {A}.", "No further events. Signed, {A}.", "Handed over to {A} in good order.")


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """Four to six entries a night; each has guests of its own."""
    while True:
        chosen = [HEAD, *shuffled(rng, ENTRIES)[: 4 + int(rng.random() * 3)], pick(rng, CLOSINGS)]
        yield {"text": "\n".join(Draw(rng, cast).fill(text) for text in chosen)}
