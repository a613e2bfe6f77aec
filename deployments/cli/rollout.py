"""Choose which version a model answers with: what `anneal promote` and `anneal rollback` do.

In:   a registered version, or a model     Out: the predictor serves it as `champion`; `previous` is the one before
The predictor loads it beside the current one, tries it and switches; aliases move only then. Dies half-way: run the
same command again; the predictor serves one of the two whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from deployments.cli.merge import base_of
from deployments.cli.shareable import where_of
from infra.errors import GateError, UserError
from infra.models.registry import GATE_TAG, Registry
from infra.models.version_names import read_name
from infra.records import Record, Version
from infra.settings import Settings
from infra.storage.store import Store
from tasks.deploy import make_champion

ROLLED_BACK_TAG = "rolled_back_at"


@dataclass(frozen=True, kw_only=True)
class Promoted(Record):
    """What a model answers with now."""

    version: Version
    before: int | None
    """Number of the version that it answered with; None: it had no champion."""
    smoke: str
    """The answer to its smoke prompt."""

    def lines(self) -> dict[str, object]:
        """What the command prints."""
        return {"serving": f"{where_of(self.version)}, {self.version.id}",
                "previous": f"version {self.before}" if self.before else "none", "smoke": self.smoke.strip()}


def promote(settings: Settings, target: str, *, base_model: str = "", force: bool = False) -> Promoted:
    """Let a model answer with this version; by default with its challenger.

    Raises:
        GateError: the gate kept it from being deployed, and there is no `force`.
        UserError: no such version, no predictor, or its base is not known here; what was served before goes on.
        Broken: the predictor refused it.
        Transient: the predictor, the registry or the store does not answer.
    """
    registry = Registry(settings)
    name = read_name(target)
    version = registry.look_up(name.destination, name.which or "challenger") if name.destination else (
        registry.named(target))
    if registry.tags(version.destination, version.number).get(GATE_TAG) == "failed" and not force:
        raise GateError("it is not good enough to be deployed", where=where_of(version),
                        fix="Its description in MLflow says why. Promote it all the same with --force.")
    return _serve(settings, registry, version, base_model)


def rollback(settings: Settings, destination: str, *, base_model: str = "") -> Promoted:
    """Let a model answer with its version before. A second one takes the first one back. Raises as `promote`."""
    name = read_name(destination)
    if not name.destination or name.which:
        raise UserError(f"the model is {destination}", allowed="owner/name",
                        fix="Leave the version out, or use `anneal promote` to choose it.")
    registry = Registry(settings)
    current = registry.look_up(name.destination)  # says it if there is no such model
    if registry.number_at("previous", name.destination) is None:
        raise UserError("it has no version before the one that is served", where=name.destination,
                        fix="`anneal promote` takes any version of it.")
    done = _serve(settings, registry, registry.look_up(name.destination, "previous"), base_model)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    registry.tag(name.destination, current.number, {ROLLED_BACK_TAG: now})
    return done


def _serve(settings: Settings, registry: Registry, version: Version, base_model: str) -> Promoted:
    if not settings.predictor:
        raise UserError("no predictor is known", fix="Start one with `anneal up`, or set ANNEAL_PREDICTOR_URL.")
    base = base_of(settings, version, Store(settings).fetch(version.folder), base_model)
    before = registry.number_at("champion", version.destination)
    smoke = make_champion(settings, registry, version, base)
    return Promoted(version=version, before=before, smoke=smoke)
