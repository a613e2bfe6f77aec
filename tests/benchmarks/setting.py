"""One model and its data, and the contenders that train it: Anneal and its peers on the same tokens."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.spec import TrainingSpec
from tasks.distributed.build import flops_of
from tasks.distributed.packs import PackedRows
from tasks.distributed.sharding import empty_base
from tests.benchmarks.windows import Contender


@dataclass(frozen=True)
class Setting:
    """One model and its data."""

    name: str
    base: Path
    packs: Path
    length: int
    rows: int
    steps: int
    """Of a window."""
    lora_rank: int = 0
    """0: full fine-tuning."""
    learning_rate: float = 1e-3

    def spec(self, precision: str, accumulation: int, *, compiled: bool = False) -> TrainingSpec:
        """What every contender is to do: clip, a constant rate, no weight decay, no dropout."""
        adapters = {"peft_method": "lora", "lora_rank": self.lora_rank, "lora_alpha": 2 * self.lora_rank,
                    "lora_dropout": 0.0} if self.lora_rank else {"peft_method": "full"}
        return TrainingSpec.of({
            "train_data": "samsum", "base_model": str(self.base), "destination": "bench/model", **adapters,
            "precision": precision, "train_batch_size": self.rows, "gradient_accumulation_steps": accumulation,
            "pack_sequences": True, "chunk_size": self.length, "compile_layers": "on" if compiled else "off",
            "num_train_epochs": 100, "learning_rate": self.learning_rate, "lr_schedule": "constant",
            "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0})

    def anneal(
        self, folder: Path, ranks: int, precision: str, accumulation: int = 1, *, compiled: bool = False,
    ) -> Contender:
        """Our trainer, a step's rows in so many parts."""
        spec = self.spec(precision, accumulation, compiled=compiled)
        job = {"out": tempfile.mkdtemp(dir=folder), "spec": spec.to_json(),
               "base": str(self.base), "packs": str(self.packs), "chunk_tokens": self.length, "key": "bench"}
        return Contender("tests.benchmarks.contender_anneal", job, ranks, folder / "log", grouped=True)

    def peer(
        self, folder: Path, ranks: int, trainer: str, precision: str, accumulation: int, attention: str,
    ) -> Contender:
        """The same for a peer."""
        return Contender("tests.benchmarks.contender_peer", {
            "base": str(self.base), "packs": str(self.packs), "trainer": trainer, "attention": attention,
            "rows": self.rows // ranks // accumulation, "length": self.length,
            "spec": self.spec(precision, accumulation).to_json()}, ranks, folder / "log")

    def tokens_and_labels(self) -> tuple[int, int]:
        """Of the training split."""
        packs = PackedRows(self.packs / "train")
        return int(packs.tokens_in.sum()), int(packs.labels_in.sum())

    def flop_per_token(self) -> float:
        """By flops_of: of the weights of linear layers; the head's count at labelled tokens only."""
        tokens, labels = self.tokens_and_labels()
        return flops_of(empty_base(self.base, torch.float32), full=not self.lora_rank)(tokens, labels) / tokens

    def flop_per_token_of_all(self) -> float:
        """As NeMo AutoModel's records count: 4 (6 where all are trained) for each of the N weights, embeddings too."""
        weights: int = sum(weight.numel() for weight in empty_base(self.base, torch.float32).parameters())
        return (4.0 if self.lora_rank else 6.0) * weights
