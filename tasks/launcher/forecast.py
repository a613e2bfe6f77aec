"""What a training will take, before it starts: steps, memory by parts, time, price.

In:   spec, pack, base (its config and weight sizes only), the table of devices
The arithmetic is stated with each part; it is an estimate, and the report shows what was real.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.errors import UserError
from infra.records import Base, Pack, Record, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import BLOCK_LOGITS, CHUNK_LOGITS
from tasks.launcher.devices import gpus
from tasks.launcher.jobs import ranks_of, settled

TABLE = Path(__file__).resolve().parent.parent.parent / "infra" / "hardware.toml"
GIB = 1 << 30
SHAPE_NAMES = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
ADAM_BYTES = 8
"""Two fp32 moments per trained parameter."""
ACTIVATIONS_PER_LAYER = {"on": 34, "off": 43}
"""Bytes x tokens x hidden size that a bf16 transformer layer keeps, compiled (arXiv 2205.05198, section 4.1) or not:
33 and 43 were measured with LoRA on the shape of Llama 2 7B (tests/benchmarks/gpu.py)."""
NOT_COMPILED = {"lora": 0.52, "qlora": 0.52, "full": 0.69}
"""Speed of layers that are not compiled, of the compiled ones' on a GPU: lora and full were measured like that."""
COMPILING_PAYS_S = 120
"""A training that would be shorter is not compiled, which takes 10 to 40 s."""
LOGIT_BYTES, BLOCK_BYTES = 4, 8
"""Of a logit (half in bf16), and of one whose softmax is being made: tasks/distributed/cross_entropy.py."""
USABLE = 0.9
"""Share of a device's memory that is not lost to the CUDA context, NCCL's buffers and gaps."""
NF4_BYTES = 0.52
"""Bytes of a 4-bit weight with its doubly quantized constants (arXiv 2305.14314, section 3)."""
CUT = ("weights", "gradients", "optimizer")
"""What shards divide among the ranks."""


FITS = {True: "yes", False: "NO: gradient_accumulation_steps 0, activation_checkpointing or a lower chunk_size help",
        None: "unknown: this device is not in the table"}


@dataclass(frozen=True, slots=True)
class Device:
    """One row of the table."""

    name: str
    tflops: float
    memory_gib: float
    usd_per_hour: float
    utilization: float

    @property
    def usable_gib(self) -> float:
        """What tensors can have of it."""
        return self.memory_gib * USABLE


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """Memory in GiB per GPU, time in seconds, price in US dollars."""

    device: str
    ranks: int
    steps: int
    tokens: int
    parameters: int
    trainable: int
    memory_gib: dict[str, float]
    parallelism: str
    why: str
    """Why this parallelism."""
    parts: int = 1
    """Micro-batches that a rank's share of a batch is cut into."""
    compile_layers: Literal["on", "off"] = "off"
    why_compiled: str = "asked for"
    """Or why not."""
    fits: bool | None
    """None: the device is not in the table, and neither are its time and price."""
    seconds: float | None
    usd: float | None
    usd_per_hour: float | None
    """Of one device."""
    paid: int = 1
    """Devices: the GPUs, or the machines where the ranks share a CPU each."""

    def lines(self) -> dict[str, str]:
        """What people read, by name."""
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_gib.items())
        return {
            "steps": f"{self.steps} ({self.tokens} tokens)",
            "parameters": f"{self.parameters:,}, {self.trainable:,} of them trained",
            "parallelism": f"{self.parallelism}: {self.why}",
            "micro-batches": f"{self.parts} of a rank in a step",
            "compiled layers": f"{self.compile_layers}: {self.why_compiled}",
            "memory of each rank": f"{sum(self.memory_gib.values()):.2f} GiB ({parts})",
            "fits": FITS[self.fits],
            "time": "unknown" if self.seconds is None else f"{self.seconds:.0f} s",
            "price": "unknown" if self.usd is None else f"{self.usd:.2f} USD"}

    def settle(self, spec: TrainingSpec) -> TrainingSpec:
        """The spec with what it leaves to the forecast."""
        return dataclasses.replace(spec, gradient_accumulation_steps=self.parts, compile_layers=self.compile_layers)

    def spent(self, trained: Trained) -> dict[str, str]:
        """The same of a finished training, as far as it is known."""
        price = {} if self.usd_per_hour is None else {
            "price": f"{trained.seconds / 3600 * self.usd_per_hour * self.paid:.2f} USD"}
        # Of a GPU's memory tensors are counted, of a CPU's the whole process.
        beside = ", Python and its libraries included" if self.device == "CPU" else ""
        memory = f"{trained.peak_memory_bytes / GIB:.2f} GiB{beside}"
        return {"steps": f"{trained.steps}", "memory of each rank": memory, "time": f"{trained.seconds:.0f} s", **price}


def forecast(settings: Settings, spec: TrainingSpec, pack: Pack, base: Base) -> Forecast:
    """Estimate from the base model's configuration alone; loads no weights."""
    config = json.loads((Path(base.path) / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    parameters, trainable = count_parameters(config, spec, Path(base.path))
    name, device = known_device(settings)
    ranks = ranks_of(spec.num_ranks) * settings.nodes
    return estimate(config, settled(spec), pack, parameters, trainable, ranks, name, device, settings.nodes)


def estimate(
    config: dict[str, Any], spec: TrainingSpec, pack: Pack, parameters: int, trainable: int, ranks: int, name: str,
    device: Device | None, nodes: int = 1,
) -> Forecast:
    """The same for any number of any device, on so many nodes; `spec.precision` is settled."""
    per_epoch = math.ceil(pack.train.rows / spec.train_batch_size)
    steps = min(per_epoch * spec.num_train_epochs, spec.max_steps or math.inf)
    tokens = round(pack.train.tokens * steps / max(1, per_epoch))
    paid = nodes if name == "CPU" else ranks
    # LoRA: forward 2N and backward 2N per token; full fine-tuning another 2N for the weights; a second forward.
    each = (6 if spec.peft_method == "full" else 4) + (2 if spec.activation_checkpointing else 0)
    fastest = None if device is None else each * parameters * tokens / (
        device.tflops * 1e12 * device.utilization * paid)
    plain = fastest if fastest is None or name == "CPU" else fastest / NOT_COMPILED[spec.peft_method]
    compiled, because = compiles(spec, name, plain)
    spec = dataclasses.replace(spec, compile_layers=compiled)
    spec, memory, parallelism, why = choose_micro_batches(
        config, spec, pack, ranks, parameters, trainable, device, nodes)
    known: dict[str, Any] = {
        "device": name, "ranks": ranks, "paid": paid, "steps": int(steps), "tokens": tokens, "parameters": parameters,
        "trainable": trainable, "memory_gib": {part: round(size / GIB, 3) for part, size in memory.items()},
        "parallelism": parallelism, "why": why, "parts": spec.gradient_accumulation_steps,
        "compile_layers": compiled, "why_compiled": because}
    seconds = fastest if compiled == "on" else plain
    if device is None or seconds is None:
        return Forecast(**known, fits=None, seconds=None, usd=None, usd_per_hour=None)
    return Forecast(
        **known, fits=sum(memory.values()) / GIB <= device.usable_gib, seconds=round(seconds, 1),
        usd=round(seconds / 3600 * device.usd_per_hour * paid, 4), usd_per_hour=device.usd_per_hour)


def known_device(settings: Settings) -> tuple[str, Device | None]:
    """This machine's device and its row in the table, <home>/hardware.toml first.

    Raises UserError for a table that cannot be read; a device that is not in it is no error.
    """
    own = settings.home_path / "hardware.toml"
    table = device_table(own if own.exists() else TABLE)
    here = gpus()[0] if gpus() else "CPU"
    rows = (device for name, device in table.items() if re.search(rf"\b{re.escape(name)}\b", here, re.IGNORECASE))
    return here, next(rows, None)


def device_table(path: Path = TABLE) -> dict[str, Device]:
    """The table of devices. Raises UserError."""
    try:
        return {name: Device(name, **row) for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()}
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"the table cannot be read ({error})", where=str(path),
                        allowed="tflops, memory_gib, usd_per_hour and utilization for each device") from error


def count_parameters(config: dict[str, Any], spec: TrainingSpec, folder: Path) -> tuple[int, int]:
    """(all, trained) parameters. A Llama-like decoder is counted from its configuration alone, any
    other from the headers of its weight files; what LoRA adds to those is not known (0)."""
    per_layer = isinstance(config.get("num_key_value_heads"), list)
    if per_layer or not all(isinstance(config.get(name), int) for name in SHAPE_NAMES):
        total = sum(_weights_in(path) for path in folder.glob("*.safetensors"))
        return total, total if spec.peft_method == "full" else 0
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    inner, heads = config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
              (hidden, inner), (hidden, inner), (inner, hidden)]
    layer = sum(a * b for a, b in shapes) + 2 * hidden
    total = layers * layer + vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2) + hidden
    if spec.peft_method == "full":
        return total, total
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wanted = names if spec.lora_targets == "all-linear" else [n.strip() for n in spec.lora_targets.split(",")]
    trained = sum(spec.lora_rank * (a + b) for name, (a, b) in zip(names, shapes, strict=True) if name in wanted)
    return total, layers * trained


def compiles(spec: TrainingSpec, device: str, seconds: float | None) -> tuple[Literal["on", "off"], str]:
    """Whether layers are to be compiled, and why; `seconds` that the training takes otherwise."""
    if spec.compile_layers != "auto":
        return spec.compile_layers, "asked for"
    reasons = {
        "it is not faster on a CPU": device == "CPU",
        "attention in fp32 is no part of a graph": spec.precision == "fp32",
        "rows are not packed, and have many lengths": not spec.pack_sequences,
        "activations are computed again": spec.activation_checkpointing,
        "4-bit layers cut the graph": spec.peft_method == "qlora",
        "the device is not in the table": seconds is None,
        "the training is short": seconds is not None and seconds < COMPILING_PAYS_S}
    against = next((reason for reason, holds in reasons.items() if holds), None)
    return ("off", against) if against else ("on", "packed rows of one size on a GPU")


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
    if ranks == 1 or spec.peft_method == "qlora" or device is None:
        why = "one rank" if ranks == 1 else "the device is not in the table" if device is None else "4-bit weights"
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
        "weights": parameters * width, "gradients": trainable * 4, "optimizer": trainable * ADAM_BYTES,
        "activations": activations * (1 if half else 2),
        "logits": logits * LOGIT_BYTES / (2 if half else 1) + min(logits, BLOCK_LOGITS["cuda"]) * BLOCK_BYTES}


def _weights_in(path: Path) -> int:
    """Parameters in a safetensors file, by its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
