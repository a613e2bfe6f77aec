"""Small packed data and a way to run the trainer on it, in this process or on real ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from infra.spec import TrainingSpec
from tasks.distributed.bin_packing import best_fit, one_each
from tasks.distributed.contract import TrainJob
from tasks.distributed.packs import write_index, write_part
from tasks.distributed.process_group import StopFlag
from tests.conftest import free_port, rank_variables

CHUNK = 64
MakeJob = Callable[..., TrainJob]


def write_pack(
    folder: Path, examples: int = 24, vocabulary: int = 500, seed: int = 0, *, lengths: tuple[int, int] = (4, 30),
    packed: bool = True,
) -> Path:
    """Random examples of `lengths` tokens, the second half of each labelled; packed, or one a row."""
    draw = np.random.default_rng(seed)
    for split in ("train", "validation"):
        ids = [draw.integers(5, vocabulary, draw.integers(*lengths)).astype(np.int32) for _ in range(examples)]
        labels = [np.arange(len(x)) >= len(x) // 2 for x in ids]
        rows = best_fit(np.array([len(x) for x in ids]), CHUNK) if packed else one_each(examples)
        (folder / split).mkdir(parents=True)
        write_index(folder / split, [write_part(folder / split, 0, ids, labels, vocabulary=vocabulary)], rows)
    return folder


@pytest.fixture
def make_job(tmp_path: Path, stories: Path) -> MakeJob:
    """A training of stories260K on random packs; keyword arguments go into the spec."""
    packs = write_pack(tmp_path / "packs")

    def make(name: str, **knobs: Any) -> TrainJob:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        values = {"train_batch_size": 3, "num_train_epochs": 2, "learning_rate": 1e-3, "lora_dropout": 0.0, **knobs}
        spec = TrainingSpec(train_data="d", base_model=str(stories), destination="a/b", **values)
        return TrainJob(out=str(out), spec=spec.to_json(), base=str(stories), packs=str(packs),
                        chunk_tokens=CHUNK, key="test")

    return make


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the only rank; its signals stay as they are."""
    for name, value in rank_variables(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(StopFlag, "__init__", lambda self: setattr(self, "is_set", False))


def gradient_of(tensor: Tensor) -> Tensor:
    """What `backward` has left there."""
    assert tensor.grad is not None
    return tensor.grad


def events_of(job: TrainJob, kind: str = "step") -> list[dict[str, Any]]:
    """The events of one kind that a run has logged."""
    path = Path(job.out) / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(job: TrainJob) -> list[float]:
    """The loss of every step that a run has logged."""
    return [event["loss"] for event in events_of(job)]
