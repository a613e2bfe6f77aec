"""What people call a version, in one form everywhere: the command line, the predictor, the UI and Python.

    acme/summarizer             the model: what it answers with, else its newest version
    acme/summarizer:2           by number
    acme/summarizer:champion    by alias
    acme/summarizer:<id>, <id>  by the 64 hex digits of its id, with or without the model
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infra.errors import UserError, shown
from infra.spec import DESTINATION, DESTINATION_CHARACTERS

VERSION_ID = re.compile(r"[0-9a-f]{64}")
FORMS = "owner/name, owner/name:2, owner/name:champion, or the 64 hex digits of a version"


@dataclass(frozen=True)
class VersionName:
    """A name that was read."""

    destination: str
    """owner/name; empty where the id stands alone."""
    which: str
    """Number, alias or id; empty: the model's own choice."""


def read_name(text: str) -> VersionName:
    """What a name says. Raises UserError for one that is none."""
    if VERSION_ID.fullmatch(text):
        return VersionName("", text)
    destination, colon, which = text.partition(":")
    if not DESTINATION.fullmatch(destination) or len(destination) > DESTINATION_CHARACTERS or (colon and not which):
        raise UserError(f"the version is {shown(text)}", allowed=FORMS, fix="Check the name.")
    return VersionName(destination, which)


def choose(name: VersionName, versions: Iterable[tuple[int, str]], aliases: Mapping[str, str]) -> str | None:
    """The id of the version that the name stands for; None if it is none of its model's.

    `versions`: (number, id), the number 0 where it is not known. `aliases`: {alias: id}.
    """
    for number, identity in versions:
        if name.which == identity or (number and name.which == str(number)):
            return identity
    return aliases.get(name.which)


def which_exist(versions: Iterable[tuple[int, str]], aliases: Iterable[str]) -> str:
    """For the sentence that refuses a name."""
    numbers = [str(number) for number in sorted(number for number, _ in versions if number)]
    return f"one of {', '.join([*numbers, *sorted(aliases)])}, or the 64 hex digits of a version"
