"""One training on the base that ships with the project, in all the ways it can be cut up.

The data is drawn by numpy's generator, whose stream is fixed, so a recorded trajectory holds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from infra.spec import TrainingSpec
from tasks.distributed.contract import TrainJob
from tests.conftest import ROOT
from tests.tasks.distributed.conftest import CHUNK, MakeJob, events_of, write_pack

BASE = ROOT / "deployments" / "examples" / "base"
KNOBS: dict[str, Any] = {
    "train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 5e-4, "lora_dropout": 0.0, "precision": "fp32",
    "warmup_ratio": 0.2}


def write_data(folder: Path, *, packed: bool = True) -> Path:
    """The data of every training here; packed, or one example a row."""
    return write_pack(folder, examples=44, seed=7, lengths=(6, 40), packed=packed)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A training; keyword arguments are fields of the job or knobs of the spec."""
    packs = write_data(tmp_path / "packs")

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
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in events_of(job)}
