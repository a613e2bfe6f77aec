"""What a running training shows: pytest tests/tasks/ui/test_progress.py"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tasks.ui import progress as module
from tasks.ui.progress import RunProgress

STEP: Any = {"event": "step", "step": 1, "total": 2, "loss": 1.0, "lr": 1e-4, "tokens_per_s": 9.0, "eta_s": 1.0}


def test_curves_that_cannot_be_drawn_cost_the_training_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setattr(module, "CURVE_EVERY_S", 0.0)

    def fail(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(module, "picture_of", fail)
    progress = RunProgress("training")
    progress.see(STEP)
    progress._draw(at_once=False)
    assert "not shown error=no space left" in caplog.text
