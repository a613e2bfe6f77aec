"""TRL's SFTTrainer and the plain transformers Trainer as contenders, on the examples that Anneal has tokenised.

TRL packs by itself (bfd) and computes its loss with its fused head. The plain Trainer flattens examples with
DataCollatorWithFlattening. Both clip, use AdamW (fused) and a constant rate, as Anneal does here. TRL also trains
adapters, beside a base in the precision of the forward pass. On CUDA: Liger's kernels where they are installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from infra.spec import TrainingSpec
from tasks.distributed.lora import adapter_config
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import dtype_of, torch_device
from tasks.distributed.packs import PackedRows
from tests.benchmarks.data import validation_loss
from tests.benchmarks.windows import Windows


class InWindows(TrainerCallback):
    """Lets the trainer go only when the parent wants steps, and stops it in the end."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any,
    ) -> None:
        self._gate(control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any,
    ) -> None:
        self._gate(control)

    def _gate(self, control: TrainerControl) -> None:
        if not self.windows.gate():
            control.should_training_stop = True


def main() -> None:
    """Options: those that tests/benchmarks/setting.py gives in `peer`."""
    options, windows = json.loads(sys.argv[1]), Windows()
    spec = TrainingSpec.from_json(options["spec"])
    lora = spec.peft_method == "lora"
    disable_progress_bars()
    packs = PackedRows(Path(options["packs"]) / "train")
    model = AutoModelForCausalLM.from_pretrained(
        options["base"], dtype=dtype_of(spec.precision, torch_device()) if lora else torch.float32,
        attn_implementation=options["attention"])
    cuda = torch.cuda.is_available()
    # The plain Trainer is given examples: as many a batch as the rows of the others hold.
    each = 1.0 if options["trainer"] == "trl" else packs.segments / len(packs)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": max(1, round(options["rows"] * each)),
        "gradient_accumulation_steps": spec.gradient_accumulation_steps, "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "constant", "max_steps": 100_000, "bf16": spec.precision == "bf16",
        "use_cpu": not cuda, "save_strategy": "no", "logging_steps": 10, "report_to": [], "optim": "adamw_torch_fused",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "disable_tqdm": True, "seed": 0, "gradient_checkpointing": False,
        "use_liger_kernel": cuda and find_spec("liger_kernel") is not None}
    if options["trainer"] == "trl":
        arguments = SFTConfig(**common, packing=True, packing_strategy="bfd", max_length=options["length"])
        trainer: Trainer = SFTTrainer(
            model, arguments, train_dataset=examples_of(packs), callbacks=[InWindows(windows)],
            peft_config=adapter_config(spec) if lora else None)
    else:
        collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
        arguments = TrainingArguments(**common, remove_unused_columns=False)
        trainer = Trainer(model, arguments, collate, examples_of(packs), callbacks=[InWindows(windows)])
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(collate(examples))
        windows.tokens += batch["input_ids"].numel()  # neither of the two pads
        return batch

    trainer.data_collator = counted
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    windows.measured()
    loss = PackedLoss(trained.get_base_model() if lora else trained)
    windows.end(validation_loss(loss, Path(options["packs"])))


def examples_of(packs: PackedRows) -> Dataset:
    """Token ids and labels of each example."""
    segments = [packs.segment(number) for number in range(packs.segments)]
    return Dataset.from_dict({
        "input_ids": [ids.astype(np.int64) for ids, _ in segments],
        "labels": [np.where(marks, ids.astype(np.int64), -100) for ids, marks in segments]})


if __name__ == "__main__":
    main()
