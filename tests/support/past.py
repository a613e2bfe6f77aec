"""Records of an imagined training, for steps that come after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.files import sha256_of
from infra.models.registry import Registry
from infra.records import Base, Evaluation, Pack, PackCounts, Split, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.launcher.jobs import settled

COUNTS = PackCounts(rows=10, examples=20, tokens=600, labelled=200, truncated=3, lost=17, split=4, longest=60, fill=0.9)
SCORE = {metric: [0.4, 0.5, 0.6] for metric in ("rouge1", "rouge2", "rougeL", "rougeLsum")}


@dataclass
class Past:
    """Everything that the registration step is given."""

    spec: TrainingSpec
    base: Base
    split: Split
    pack: Pack
    trained: Trained
    evaluation: Evaluation


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables; a copy of a file takes none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(Settings(home=path.parent)).client.search_registered_models()
    return path


@pytest.fixture
def database(empty_database: Path, settings: Settings) -> None:
    """An MLflow database of one's own."""
    (settings.home_path / "mlflow.db").write_bytes(empty_database.read_bytes())


@pytest.fixture
def past(store: Store, tmp_path: Path) -> Past:
    """A finished LoRA training with an adapter in the store."""
    base = tmp_path / "base-model"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({
        "hidden_size": 64, "num_hidden_layers": 5, "vocab_size": 512, "intermediate_size": 172,
        "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True,
        "max_position_embeddings": 512}))
    (base / "tokenizer.json").write_text("{}")
    save_file({"w": np.zeros(260_000, np.float32)}, base / "model.safetensors")
    with store.draft() as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
        save_file({"a": np.ones(3, np.float32)}, draft.path / "model" / "adapter_model.safetensors")
        digest = sha256_of(draft.path / "model" / "adapter_model.safetensors")
        draft.commit("trainings/t", {})
    return Past(
        spec=settled(TrainingSpec(
            train_data=str(tmp_path / "secret" / "d.jsonl"), base_model=str(base), destination="acme/summarizer")),
        base=Base(name="base-model", path=str(base), digest="b" * 64, context_tokens=512),
        split=Split(folder="splits/s", digest="s" * 64, kind="prompt", separator="\n", train_rows=20,
                    validation_rows=2, duplicates=6, leaks=7),
        pack=Pack(folder="packs/p", digest="p" * 64, chunk_tokens=64, train=COUNTS, validation=COUNTS),
        trained=Trained(
            folder="trainings/t", training_id="abcdefghijklmnopqrstuvwxyz", digest=digest, method="lora", steps=5,
            ranks=1, seconds=1.0, tokens_per_s=100.0, trainable=3, loss_first=4.0, loss_last=3.0,
            peak_memory_bytes=1 << 30),
        evaluation=Evaluation(
            folder="evaluations/e", samples=2, rouge={"tuned": SCORE, "base": SCORE, "lead3": SCORE},
            loss={"tuned": 3.0, "base": 4.0}, passed=True, verdict="Passed.",
            examples=[{"prompt": "Hi", "reference": "a", "tuned": "<b>|x", "base": "c", "lead3": "d"}]))
