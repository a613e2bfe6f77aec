"""The base models that clients may train, by the names that their scripts use.

In:   ANNEAL_BASES: meta/llama-2-7b:4841472f...=/models/llama-2-7b, ...     Out: the base of a name and version
The demo's base model is always among them. A base has the version id that its entry names, else one made from its name
and place: nobody has to hash 140 GB before he can ask. What a version was really trained on, its lineage says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError, shown
from infra.files import digest_of
from infra.settings import Settings
from infra.spec import DESTINATION

DEMO = "anneal/demo-base"
DEMO_FOLDER = Path(__file__).resolve().parent.parent / "examples" / "base"
VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BaseVersion:
    """A base model that can be trained."""

    owner: str
    name: str
    version: str
    """64 hex digits."""
    place: str
    """What `base_model` of a training is: a folder, s3:// prefix or hub name."""

    @property
    def model(self) -> str:
        """owner/name."""
        return f"{self.owner}/{self.name}"


class Catalogue:
    """All base models. Raises UserError, naming ANNEAL_BASES, for an entry that is none."""

    def __init__(self, settings: Settings) -> None:
        entries = [entry.strip() for entry in re.split(r"[,\n]", settings.bases) if entry.strip()]
        self.bases = [_read(entry) for entry in [*entries, f"{DEMO}={DEMO_FOLDER}"]]

    def of(self, model: str) -> list[BaseVersion]:
        """The versions of a base model; none if it is no base model."""
        return [base for base in self.bases if base.model == model]

    def find(self, model: str, version: str) -> BaseVersion | None:
        """The base with that version id."""
        return next((base for base in self.of(model) if base.version == version), None)

    def with_id(self, version: str) -> BaseVersion | None:
        """The base whose version this is."""
        return next((base for base in self.bases if base.version == version), None)


def _read(entry: str) -> BaseVersion:
    name, equals, place = entry.partition("=")
    model, _, version = name.strip().partition(":")
    if not equals or not place.strip() or not DESTINATION.fullmatch(model) or (
            version and not VERSION.fullmatch(version)):
        raise UserError(f"an entry is {shown(entry)}", where="ANNEAL_BASES",
                        allowed="owner/name=folder or owner/name:version=folder, with a version of 64 hex digits",
                        fix="Correct this environment variable.")
    owner, _, rest = model.partition("/")
    return BaseVersion(owner, rest, version or digest_of([model, place.strip()]), place.strip())
