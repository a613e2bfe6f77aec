"""What came of a training: its scores beside the base's, and how they compare, as the version's own files tell.

In:   versions/<id>/training.json in the store      Out: sentences and a table for the training's page
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from deployments.gateway.context import Gateway
from infra.errors import AnnealError
from infra.models.version_folder import LINEAGE_FILE
from infra.records import Comparison
from tasks.scoring.verdict import sentences
from tasks.ui.model_card import METRIC_NAMES, scores_of

log = logging.getLogger(__name__)
LOSS = "held-out loss"


@dataclass(frozen=True)
class Outcome:
    """For a page. A model without a figure has an empty cell."""

    said: list[str]
    """Better, no difference seen, or worse than the base and a baseline; the champion's place changes, and stands with
    the model."""
    metrics: list[str]
    rows: list[tuple[str, list[str]]]
    """(model, cells): values with their 95 % intervals."""


def outcome_of(here: Gateway, version: str) -> Outcome | None:
    """Of a version; None where nothing was held out, for one of another release, and while the store is away."""
    try:
        lineage = json.loads(here.store.read(f"versions/{version}/{LINEAGE_FILE}") or "{}")
        scores = scores_of(lineage)
        compared = {name: Comparison.of(one) for name, one in lineage["metrics"].get("compared", {}).items()}
    except (AnnealError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.debug("no scores of version %s: %s", version[:12], error)
        return None
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    if not names:
        return None
    return Outcome(
        said=sentences(compared, None), metrics=[METRIC_NAMES.get(name, _plain(name)) for name in names],
        rows=[(model, [_cell(values.get(name)) for name in names]) for model, values in scores.items()])


def _plain(name: str) -> str:
    return LOSS if name == "loss" else name.replace("_", " ")


def _cell(values: list[float] | None) -> str:
    """[low, value, high], or [value]."""
    if not values:
        return ""
    return f"{values[0]:.4f}" if len(values) == 1 else f"{values[1]:.3f} ({values[0]:.3f} to {values[2]:.3f})"
