"""tasks/distributed/events.py: what a step tells of time and money."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.distributed.events import Events


def test_a_step_says_how_long_the_rest_takes_and_what_it_has_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    """Ten seconds a step; the launches before this one took an hour, at 3.60 dollars an hour."""
    clock = [100.0]
    monkeypatch.setattr("tasks.distributed.events.time.monotonic", lambda: clock[0])
    log = Events(tmp_path, total=10, usd_per_hour=3.6, seconds_before=3600.0, peak_tflops=2.0, _start=100.0)
    for step in (7, 8):  # it goes on from a checkpoint
        clock[0] += 10
        log.step(step, loss=1.0, grad_norm=1.0, lr=1e-4, tokens=500, labels=100, capacity=1000, flops=5e12,
                 memory_bytes=1 << 30)
    seen: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["eta_s"] for event in seen] == [30.0, 20.0]
    assert [event["usd"] for event in seen] == [3.61, 3.62]
    assert [event["tokens_per_s"] for event in seen] == [50.0, 50.0] and seen[0]["labels_per_s"] == 10.0
    assert [event["mfu"] for event in seen] == [0.25, 0.25] and seen[0]["fill"] == 0.5
    assert "7/10" in capsys.readouterr().out
