"""The share of useful time, on a training whose steps are known: pytest tests/benchmarks/test_steps.py"""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.steps import Log


def test_time_is_useful_where_a_step_is_new_and_training_does_not_stand_still(tmp_path: Path) -> None:
    log, folder = Log(tmp_path), tmp_path / "trainings" / "one"
    folder.mkdir(parents=True)
    events = [
        {"event": "start", "time": 0}, *({"event": "step", "time": 10 + i, "step": i} for i in range(1, 5)),
        {"event": "checkpoint", "time": 13, "step": 2, "stall_s": 0.5},
        {"event": "resume", "time": 20},  # behind step 2: steps 3 and 4 are done anew
        *({"event": "step", "time": 20 + 2 * i, "step": i} for i in range(3, 8)),
        {"event": "resume", "time": 40}, {"event": "step", "time": 41, "step": 8}]  # nothing is done anew
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    log.read()
    assert (log.last, len(log.launches), log.step_s(before=50)) == (8, 3, 2)
    assert log.useful_s(end=50) == 3 * 1 + 3 * 2 - 0.5
    assert log.useful_s(end=30) == 3 * 1 + 1 * 2 - 0.5
