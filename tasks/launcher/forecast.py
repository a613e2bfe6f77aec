"""What a training will take, before it starts: steps, memory by parts, time, price.

In:   spec, pack, base (its config and weight sizes only), the table of devices
The arithmetic is stated with each part; it is an estimate, and the report shows what was real.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infra.progress import price_in_words, seconds_in_words
from infra.records import Base, Pack, Record, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.launcher.device_table import GIB, Device, known_device
from tasks.launcher.jobs import ranks_of, settled
from tasks.launcher.measured import Span
from tasks.launcher.memory import ANSWERED_ROWS, choose_micro_batches, memory_to_answer
from tasks.launcher.weights import weights_of
from tasks.launcher.whole_run import Phase, Work, spans_of, taken_by, whole, works_of

NOT_COMPILED = {"lora": 0.52, "qlora": 0.52, "full": 0.69}
"""Speed of layers that are not compiled, of the compiled ones' on a GPU: lora and full were measured like that."""
COMPILING_PAYS_S = 120
"""A training that would be shorter is not compiled, which takes 10 to 40 s."""


FITS = {True: "yes", False: "NO: gradient_accumulation_steps 0, activation_checkpointing or a lower chunk_size help",
        None: "unknown: this device is not in the table"}


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """Memory in GiB per GPU, time in seconds, price in US dollars."""

    device: str
    ranks: int
    steps: int
    tokens: int
    parameters: int
    trainable: int
    active: int = 0
    """Parameters that a token goes through: of experts, those that are chosen."""
    coverage: dict[str, float] = field(default_factory=dict)
    """Share of the weights of each kind of layer that is trained or has an adapter."""
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

    phases: dict[Phase, Span] = field(default_factory=dict)
    """(low, likely, high) seconds of each step after `pack`; empty where nothing is known."""
    is_measured: bool = False
    """Whether this machine has measured such trainings and evaluations before."""
    works: dict[Phase, Work] = field(default_factory=dict)
    """What their times are compared by."""
    one_at_a_time: str | None = None
    """Why examples go through the model one at a time; empty: they are packed; None: the base was not tried."""
    memory_later_gib: dict[str, float] = field(default_factory=dict)
    """Of the steps that answer: evaluate, and the predictor with one request."""

    def lines(self) -> dict[str, str]:
        """What people read, by name."""
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_gib.items())
        return {
            "steps": f"{self.steps} ({self.tokens} tokens)",
            "parameters": f"{self.parameters:,}, {self._active()}{self.trainable:,} of them trained",
            **({"trained layers": ", ".join(f"{kind} {share:.0%}" for kind, share in self.coverage.items())
                + self._experts()} if self.coverage else {}),
            **({} if self.one_at_a_time is None else {"examples": (
                f"one at a time: {self.one_at_a_time}" if self.one_at_a_time else "all of a row at once")}),
            "parallelism": f"{self.parallelism}: {self.why}",
            "micro-batches": f"{self.parts} of a rank in a step",
            "compiled layers": f"{self.compile_layers}: {self.why_compiled}",
            "memory of each rank": f"{sum(self.memory_gib.values()):.2f} GiB ({parts})",
            "fits": FITS[self.fits],
            **{f"memory of {name}": f"{size:.2f} GiB" for name, size in self.memory_later_gib.items()},
            "time": self._whole_time(),
            **{f"time of {phase}": in_words(span) for phase, span in self.phases.items()},
            "price": "unknown" if self.usd is None else price_in_words(self.usd)}

    def _active(self) -> str:
        return f"a token goes through {self.active:,}, " if 0 < self.active < self.parameters else ""

    def _experts(self) -> str:
        share = self.coverage.get("experts")
        if share is None:
            return ""
        how = "adapters of experts have no dropout" if share and self.trainable < self.parameters else (
            "experts are not trained" if not share else "")
        return "; ".join(filter(None, ["", how, "the router's balancing loss is not added"]))

    def _whole_time(self) -> str:
        if not self.phases:
            return "unknown" if self.seconds is None else f"{self.seconds:.0f} s"
        span = whole(self.phases)
        if self.is_measured:
            return f"{in_words(span)}, by runs like it on this machine"
        low, _, high = map(seconds_in_words, span)
        return f"not known yet, between {low} and {high}: this machine has not measured such a run"

    def later_s(self, step: str) -> float:
        """Seconds that the steps after this one will take."""
        phases = list(self.phases)
        after = phases[phases.index(step) + 1 :] if step in phases else []
        return sum(self.phases[phase].likely for phase in after)

    def settle(self, spec: TrainingSpec) -> TrainingSpec:
        """The spec with what it leaves to the forecast."""
        return dataclasses.replace(spec, gradient_accumulation_steps=self.parts, compile_layers=self.compile_layers)

    def spent(self, trained: Trained, times: Mapping[str, float] | None = None) -> dict[str, str]:
        """The same of a finished training, as far as it is known; `times`: seconds of the steps of this run."""
        taken = taken_by(trained, times or {})
        price = {} if self.usd_per_hour is None else {
            "price": price_in_words(trained.seconds / 3600 * self.usd_per_hour * self.paid)}
        # Of a GPU's memory tensors are counted, of a CPU's the whole process.
        beside = ", Python and its libraries included" if self.device == "CPU" else ""
        memory = f"{trained.peak_memory_bytes / GIB:.2f} GiB{beside}"
        return {"steps": f"{trained.steps}", "memory of each rank": memory,
                "time": seconds_in_words(sum(taken.values())) if taken else f"{trained.seconds:.0f} s",
                **{f"time of {phase}": seconds_in_words(seconds) for phase, seconds in taken.items()}, **price}


def forecast(settings: Settings, spec: TrainingSpec, pack: Pack, base: Base) -> Forecast:
    """Estimate from the base model's configuration alone; loads no weights."""
    config = json.loads((Path(base.path) / "config.json").read_text(encoding="utf-8"))
    config = {**config, **(config.get("text_config") or {})}
    weights = weights_of(config, spec, Path(base.path))
    parameters, trainable = weights.total, weights.trained
    name, device = known_device(settings)
    ranks = ranks_of(spec.num_ranks) * settings.nodes
    found = estimate(config, settled(spec), pack, parameters, trainable, ranks, name, device, settings.nodes,
                     active=weights.active)
    found = dataclasses.replace(found, coverage=weights.coverage)
    works = works_of(settings, found.settle(settled(spec)), pack, base, name, ranks, found.tokens)
    phases, is_measured = spans_of(settings, works, found.seconds)
    longest = min(pack.validation.longest + spec.max_new_tokens, base.context_tokens)
    later = {"evaluation": (ANSWERED_ROWS, longest), "the predictor": (1, base.context_tokens)}
    return dataclasses.replace(
        found, works=works, phases=phases, is_measured=is_measured, memory_later_gib={
            step: round(memory_to_answer(config, settled(spec), parameters, rows, tokens) / GIB, 3)
            for step, (rows, tokens) in later.items()})


def in_words(span: Span) -> str:
    """2 min 5 s (1 min 50 s to 2 min 20 s)."""
    low, likely, high = map(seconds_in_words, span)
    return f"{likely} ({low} to {high})"


def estimate(
    config: dict[str, Any], spec: TrainingSpec, pack: Pack, parameters: int, trainable: int, ranks: int, name: str,
    device: Device | None, nodes: int = 1, *, active: int | None = None,
) -> Forecast:
    """The same for any number of any device, on so many nodes; `spec.precision` is settled. `active`: weights that a
    token goes through, where these are not all."""
    active = parameters if active is None else active
    per_epoch = math.ceil(pack.train.rows / spec.train_batch_size)
    steps = min(per_epoch * spec.num_train_epochs, spec.max_steps or math.inf)
    tokens = round(pack.train.tokens * steps / max(1, per_epoch))
    paid = nodes if name == "CPU" else ranks
    # LoRA: forward 2N and backward 2N per token; full fine-tuning another 2N for the weights; a second forward.
    each = (6 if spec.peft_method == "full" else 4) + (2 if spec.activation_checkpointing else 0)
    fastest = None if device is None else each * active * tokens / (
        device.tflops * 1e12 * device.utilization * paid)
    plain = fastest if fastest is None or name == "CPU" else fastest / NOT_COMPILED[spec.peft_method]
    compiled, because = compiles(spec, name, plain)
    spec = dataclasses.replace(spec, compile_layers=compiled)
    spec, memory, parallelism, why = choose_micro_batches(
        config, spec, pack, ranks, parameters, trainable, device, nodes)
    known: dict[str, Any] = {
        "device": name, "ranks": ranks, "paid": paid, "steps": int(steps), "tokens": tokens, "parameters": parameters,
        "active": active, "trainable": trainable,
        "memory_gib": {part: round(size / GIB, 3) for part, size in memory.items()},
        "parallelism": parallelism, "why": why, "parts": spec.gradient_accumulation_steps,
        "compile_layers": compiled, "why_compiled": because}
    seconds = fastest if compiled == "on" else plain
    if device is None or seconds is None:
        return Forecast(**known, fits=None, seconds=None, usd=None, usd_per_hour=None)
    return Forecast(
        **known, fits=sum(memory.values()) / GIB <= device.usable_gib, seconds=round(seconds, 1),
        usd=round(seconds / 3600 * device.usd_per_hour * paid, 4), usd_per_hour=device.usd_per_hour)


def count_parameters(config: dict[str, Any], spec: TrainingSpec) -> tuple[int, int]:
    """(all, trained) parameters of a Llama-like decoder, from its configuration alone."""
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
