"""tasks/distributed/prove.py: an estimate compares the loss with the base's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import BaseModelError
from infra.spec import TrainingSpec
from tasks.distributed.contract import ProveJob
from tasks.distributed.prove import prove_base


def proof_of(base: Path, out: Path) -> dict[str, object]:
    spec = TrainingSpec(train_data="d", base_model="m", destination="a/b")
    assert prove_base(ProveJob(out=str(out), base=str(base), spec=spec.to_json())) == 0
    return dict(json.loads((out / "result.json").read_text()))


def test_a_right_base_is_proven_with_its_adapters(stories: Path, tmp_path: Path) -> None:
    found = proof_of(stories, tmp_path)
    assert found["packed"] and not found["why"]


def test_a_base_whose_examples_go_one_at_a_time_says_why(shared: Path, tmp_path: Path) -> None:
    found = proof_of(shared / "cases" / "crash-qwen3_5" / "base", tmp_path)
    assert not found["packed"] and "carry a state" in str(found["why"])


@pytest.mark.parametrize("case", ["missing-weights-nohead", "missing-weights-prefix"])
def test_a_base_without_its_weights_is_refused(shared: Path, tmp_path: Path, case: str) -> None:
    with pytest.raises(BaseModelError, match=r"lm_head|base_model"):
        proof_of(shared / "cases" / case / "base", tmp_path)
