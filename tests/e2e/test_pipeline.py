"""One training end to end, over a real Prefect server, MLflow, predictor and S3: pytest tests/e2e/test_pipeline.py"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import Stack, Training

pytestmark = pytest.mark.slow


def test_one_version_is_registered_with_its_origin_and_aliases(stack: Stack, first: Training) -> None:
    (version,) = stack.versions("acme/notes")
    assert version.tags["training_id"] == first.version["training_id"]
    assert version.tags["version_id"] == first.version["id"]
    assert first.version["uri"] == "models:/acme--notes/1"
