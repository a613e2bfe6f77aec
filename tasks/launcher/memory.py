"""How much memory a step takes on each GPU, by parts, and how a training is cut so that it fits.

In:   the base's configuration, the spec, the pack      Out: bytes by part, a parallelism, a number of micro-batches
The arithmetic is stated with each part; it is an estimate. No weights are loaded.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from infra.records import Pack
from infra.spec import TrainingSpec
from tasks.distributed.contract import BLOCK_LOGITS, CHUNK_LOGITS
from tasks.launcher.device_table import GIB, Device

ADAM_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""Two fp32 moments per trained parameter."""
ACTIVATIONS_PER_LAYER = {"on": 34, "off": 43}
"""Bytes x tokens x hidden size that a bf16 transformer layer keeps, compiled (arXiv 2205.05198, section 4.1) or not:
33 and 43 were measured with LoRA on the shape of Llama 2 7B (tests/benchmarks/gpu.py)."""
LOGIT_BYTES, BLOCK_BYTES = 4, 8
"""Of a logit (half in bf16), and of one whose softmax is being made: tasks/distributed/cross_entropy.py."""
NF4_BYTES = 0.52
"""Bytes of a 4-bit weight with its doubly quantized constants (arXiv 2305.14314, section 3)."""
CUT = ("weights", "gradients", "optimizer")
"""What shards divide among the ranks."""
ANSWERED_ROWS = 16
"""Rows that evaluation answers at a time: BATCH_ROWS of tasks/distributed/generate.py."""


def choose_micro_batches(
    config: dict[str, Any], spec: TrainingSpec, pack: Pack, ranks: int, parameters: int, trainable: int,
    device: Device | None, nodes: int,
) -> tuple[TrainingSpec, dict[str, float], str, str]:
    """The spec with a number of micro-batches, and what `spread` says of it: where the spec leaves it open, the fewest
    that fit, rather with a copy of the weights on each rank than in shards."""
    share = math.ceil(spec.train_batch_size / ranks)
    numbers = [spec.gradient_accumulation_steps] if spec.gradient_accumulation_steps else (
        [1] if device is None else [*(1 << n for n in range(share.bit_length()) if 1 << n < share), share])
    found = []
    for number in numbers:
        one = dataclasses.replace(spec, gradient_accumulation_steps=number)
        found.append((one, *spread(config, one, pack, ranks, parameters, trainable, device, nodes)))
    fitting = [(way != "ddp", place) for place, (_, memory, way, _) in enumerate(found)
               if device is None or sum(memory.values()) / GIB <= device.usable_gib]
    return found[min(fitting)[1] if fitting else -1]


def spread(
    config: dict[str, Any], spec: TrainingSpec, pack: Pack, ranks: int, parameters: int, trainable: int,
    device: Device | None, nodes: int = 1,
) -> tuple[dict[str, float], str, str]:
    """(memory by parts, ddp | fsdp | hsdp, why): what the spec asks for, or ddp where it fits, else shards:
    of a node's ranks if that is enough, else of all."""
    whole = memory_parts(config, spec, pack, ranks, parameters, trainable)

    def cut(shards: int) -> dict[str, float]:
        return {part: size / shards if part in CUT else size for part, size in whole.items()}

    if spec.parallelism != "auto":
        shards = {"ddp": 1, "fsdp": ranks, "hsdp": ranks // nodes}[spec.parallelism]
        return cut(shards), spec.parallelism, "asked for"
    if ranks == 1 or spec.peft_method == "qlora" or spec.optimizer == "adamw_8bit" or device is None:
        why = ("one rank" if ranks == 1 else "the device is not in the table" if device is None
               else "4-bit weights" if spec.peft_method == "qlora" else "8-bit optimizer")
        return whole, "ddp", why
    needed = sum(whole.values()) / GIB
    if needed <= device.usable_gib:
        return whole, "ddp", f"{needed:.1f} GiB a rank fit the {device.usable_gib:.0f} usable GiB of {device.name}"
    if nodes > 1 and sum(cut(ranks // nodes).values()) / GIB <= device.usable_gib:
        return cut(ranks // nodes), "hsdp", f"a whole copy takes {needed:.1f} GiB, shards of a node's ranks fit"
    return cut(ranks), "fsdp", f"a whole copy takes {needed:.1f} GiB, {device.name} has {device.usable_gib:.0f} usable"


def memory_parts(
    config: dict[str, Any], spec: TrainingSpec, pack: Pack, ranks: int, parameters: int, trainable: int,
) -> dict[str, float]:
    """Bytes per rank with a copy on each: weights, gradients, optimizer, activations, logits."""
    half = spec.precision == "bf16"
    # Full fine-tuning in bf16: fp32 weights, and the copies that autocast makes of them for a step.
    width = NF4_BYTES if spec.peft_method == "qlora" else (2 if spec.peft_method == "lora" else 6) if half else 4
    share = math.ceil(spec.train_batch_size / ranks / spec.gradient_accumulation_steps)
    tokens = share * (pack.chunk_tokens if spec.pack_sequences else min(pack.train.longest, pack.chunk_tokens))
    labelled = tokens * pack.train.labelled / max(1, pack.train.tokens)
    layers, hidden = config.get("num_hidden_layers", 0), config.get("hidden_size", 0)
    layer = ACTIVATIONS_PER_LAYER["on" if spec.compile_layers == "on" else "off"]
    kept = 2 * layers + layer if spec.activation_checkpointing else layers * layer
    activations = tokens * hidden * kept
    logits = min(labelled * config.get("vocab_size", 0), CHUNK_LOGITS)
    return {
        "weights": parameters * width, "gradients": trainable * 4, "optimizer": trainable * ADAM_BYTES[spec.optimizer],
        "activations": activations * (1 if half else 2),
        "logits": logits * LOGIT_BYTES / (2 if half else 1) + min(logits, BLOCK_LOGITS["cuda"]) * BLOCK_BYTES}


def memory_to_answer(config: dict[str, Any], spec: TrainingSpec, parameters: int, rows: int, tokens: int) -> float:
    """Bytes that answering takes on each GPU: weights, keys and values of `rows` sequences of so many tokens, and the
    logits of their last tokens. Evaluation answers ANSWERED_ROWS at a time, the predictor one for each request."""
    width = 2 if spec.precision == "bf16" else 4
    hidden, heads = config.get("hidden_size", 0), config.get("num_attention_heads") or 1
    keys = config.get("num_key_value_heads") or heads
    each = keys if isinstance(keys, int) else heads
    head = config.get("head_dim") or hidden // heads
    cached = 2 * config.get("num_hidden_layers", 0) * each * head * width
    weights = parameters * (NF4_BYTES if spec.peft_method == "qlora" else width)
    return float(weights + rows * (tokens * cached + config.get("vocab_size", 0) * LOGIT_BYTES))
