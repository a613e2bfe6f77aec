"""One training on the base that ships with the project, in all the ways it can be cut up.

The data is drawn by numpy's generator, whose stream is fixed, so a recorded trajectory holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.spec import TrainingSpec
from tasks.distributed.encode import Encoded, write_rows
from tasks.distributed.job import TrainJob
from tasks.distributed.packer import best_fit, one_each
from tests.conftest import ROOT

BASE = ROOT / "deployments" / "demo" / "base"
CHUNK, EXAMPLES, VOCABULARY = 64, 44, 500
KNOBS: dict[str, Any] = {
    "train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 5e-4, "lora_dropout": 0.0, "precision": "fp32",
    "warmup_ratio": 0.2}
MakeJob = Callable[..., TrainJob]


def write_pack(folder: Path, *, packed: bool = True) -> Path:
    """Random examples of 6 to 40 tokens, the second half of each labelled; packed, or one a row."""
    draw = np.random.default_rng(7)
    for split in ("train", "validation"):
        ids = [draw.integers(5, VOCABULARY, draw.integers(6, 40)).astype(np.int32) for _ in range(EXAMPLES)]
        labels = [np.arange(len(x)) >= len(x) // 2 for x in ids]
        lengths = np.array([len(x) for x in ids])
        write_rows(folder / split, Encoded(ids, labels), best_fit(lengths, CHUNK) if packed else one_each(len(ids)))
    return folder


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A training; keyword arguments are fields of the job or knobs of the spec."""
    packs = write_pack(tmp_path / "packs")

    def make(name: str, **values: Any) -> TrainJob:
        fields = {field.name for field in dataclasses.fields(TrainJob)}
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        knobs = {**KNOBS, **{key: value for key, value in values.items() if key not in fields}}
        spec = TrainingSpec(train_data="d", base_model=str(BASE), destination="a/b", **knobs)
        return TrainJob(**{
            "out": str(out), "spec": spec.to_json(), "base": str(BASE), "packs": str(packs), "chunk_tokens": CHUNK,
            "key": "k", **{key: value for key, value in values.items() if key in fields}})

    return make


def trajectory(job: TrainJob) -> dict[int, tuple[float, float]]:
    """{step: (loss, gradient norm)} as logged; a step done twice counts as it was done last."""
    lines = (Path(job.out) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in steps}
