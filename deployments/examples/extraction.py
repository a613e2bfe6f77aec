"""Extraction: a message about an appointment as JSON. Rows {"prompt", "completion"}, the completion is one object.

Fields that a message does not name are left out; "people" is a list without an order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick
from deployments.examples.names import Cast

PROMPT = "Message: {message}\n\nJSON:"
FIELDS = {"{event}": "event", "{day}": "day", "{time}": "time", "{venue}": "place", "{town}": "town"}
PEOPLE = ("{A}", "{B}", "{C}")
MESSAGES = (
    "{event} on {day} at {time}, at {venue}. {A} and {B} are coming.",
    "Hi {A}, the {event} is on {day} at {time}.",
    "{A} and {B}: {event} at {venue}, {day}, {time}!",
    "We moved the {event} to {day}, says {A}.",
    "Can you tell {A} that the {event} starts at {time}? We are in {town}.",
    "{A}, {B} and {C} meet at {venue} in {town} on {day}.",
    "The {event} in {town} is on {day}. {A} brings {B}.",
    "On {day} at {time} there is {event} at {venue}.",
    "{A} booked {venue} for the {event}, {day} at {time}.",
    "Don't forget: {day}, {time}, {event} with {A}, {B} and {C}.",
)


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """The wordings are the same in both splits."""
    while True:
        wording, draw = pick(rng, MESSAGES), Draw(rng, cast)
        message = draw.fill(wording)
        record: dict[str, Any] = {name: draw.fill(slot) for slot, name in FIELDS.items() if slot in wording}
        people = [draw.fill(slot) for slot in PEOPLE if slot in wording]
        record |= {"people": people} if people else {}
        yield {"prompt": PROMPT.format(message=message[0].upper() + message[1:]),
               "completion": f" {json.dumps(record)}"}
