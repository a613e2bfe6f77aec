"""Classification: what a message is about. Rows {"prompt", "completion"}, the completion is the label.

Every message names a person or a place, so that the splits share none. The last UNSEEN wordings of each label
stand in held-out rows only: the label has to be told from words, not from a sentence learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick
from deployments.examples.names import Cast

PROMPT = "Message: {message}\n\nTopic:"
UNSEEN = 2
MESSAGES: dict[str, tuple[str, ...]] = {
    "food": (
        "{A} brings {dish} with {food} to the party.", "I need {food} for the {dish}, can you ask {A}?",
        "The {dish} at {venue} was too salty.", "{A} never eats {food}, so no {dish} please.",
        "How long does {dish} stay in the oven, {A}?", "We ran out of {food}, says {A}.",
        "{A} wants the recipe of your {dish}.", "Dinner at {venue}: {dish} for me, {dish2} for {A}.",
        "{A} put {food} into the {dish} by mistake.", "Is there any {dish} left, {A}?"),
    "travel": (
        "The {ride} to {town} leaves at {time}.", "{A} missed the {ride} from {town}.",
        "We go to {town} by {ride} on {day}.", "Are there seats on the {ride} to {town} on {day}?",
        "{A} is {number} minutes from {town}, the {ride} is slow.", "My {ride} from {town} to {town2} is cancelled.",
        "{A} sends greetings from {town}, we go on to {town2} tomorrow.", "Which {ride} goes to {town}, {A}?",
        "The {ride} to {town} is full, so {A} waits.", "{A} flies home from {town2} on {day}."),
    "health": (
        "{A} has {pain} since {day}.", "For {pain} you should {cure}, {A}.",
        "I can't come to {venue}, I have {pain}.", "{A} says: {cure}, then the {pain} goes away.",
        "Does {A} still have {pain}?", "The doctor in {town} told me to {cure}.",
        "{A} went to the doctor with {pain}.", "You look ill, {A}, please {cure}.",
        "{A} woke up with {pain} and should {cure}.", "Better now, {A}? Or still {pain}?"),
    "work": (
        "{A} needs the {doc} by {day}.", "Please send the {doc} to {A} before {time}.",
        "The {event} with {A} is moved to {day}.", "Who wrote the {doc}, you or {A}?",
        "{A} has found mistakes in the {doc}.", "There is a new {doc} from {A} in the folder.",
        "Our office in {town} still waits for the {doc}.", "{A} can't finish the {doc} today.",
        "Two pages of the {doc} are missing, {A}.", "{A} prints the {doc} for the boss."),
    "lost things": (
        "{A} can't find the {object}.", "Has anybody seen {A}'s {object}?",
        "I left my {object} at {venue}.", "The {colour} {object} {spot} belongs to {A}.",
        "{A} found a {object} {spot}.", "Somebody at {venue} has my {object}.",
        "Look {spot}, {A}, your {object} may be there.", "A {colour} {object} was lost in {town}.",
        "My {object} is gone, {A}, I looked {spot}.", "{A}, is this {object} yours?"),
    "shopping": (
        "{A} sells the {thing} for {price}.", "Is the {thing} still for sale, {A}?",
        "I bought {gift} for {A}, it cost {price}.", "The shop in {town} has {gift} for {price}.",
        "{A} wants {price} for the old {thing}.", "What about {gift} for {A}, or is {price} too much?",
        "The {thing} was {price} cheaper in {town}.", "{A} pays {price} for a {colour} {thing}.",
        "Would {A} take {price} for it?", "{gift} or {gift2} as a present for {A}?")}


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """Labels are drawn evenly."""
    while True:
        label = pick(rng, tuple(MESSAGES))
        wordings = MESSAGES[label] if held_out else MESSAGES[label][:-UNSEEN]
        message = Draw(rng, cast).fill(pick(rng, wordings))
        yield {"prompt": PROMPT.format(message=message[0].upper() + message[1:]), "completion": f" {label}"}
