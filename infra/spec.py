"""The training spec: every knob once, with its meaning, unit and range.

`TrainingSpec` is what a user asks for. The Prefect form, the command line, the table in docs/parameters.md
and the ranks all read the fields below; the checks run wherever a spec is made.
Names are those of the Replicate Llama-2 trainer, with meanings that hold.
Standard library only: ranks import this file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from infra.errors import UserError, did_you_mean, shown
from infra.redaction import secret_in

DESTINATION = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*/[a-z0-9]+(?:[._-][a-z0-9]+)*")
DESTINATION_CHARACTERS = 120
COLUMN_KINDS = (("prompt", "completion"), ("text",), ("messages",))
ADDRESSES = ("train_data", "validation_data", "base_model")
Method = Literal["lora", "qlora", "full"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
LATER = ("base_version", "use_rslora", "loraplus_lr_ratio", "neftune_alpha", "optimizer", "prompt_format")
"""Knobs that the first trainings did not have: at their defaults they are no part of a digest."""
Group = Literal["Required", "Data", "Method", "Schedule", "Hardware", "Evaluation"]
"""What a knob is about, in the order in which people meet them."""
Drop = Literal["none", "duplicates", "leaks", "duplicates+leaks", "all"]
Gate = Literal["auto", "not_worse_than_base", "not_worse_than_champion", "off"]
PromptFormat = Literal["plain", "templated"]
TaskType = Literal["auto", "summary", "classification", "question", "extraction", "chat", "style"]


def knob(
    group: Group, help: str, default: Any = dataclasses.MISSING, *, ge: float | None = None, le: float | None = None,
    shapes: Literal["weights", "scores", "place"] = "weights",
) -> Any:
    """One field of the spec. `shapes` says what it can change: the trained weights, only how they
    are scored and judged, or only where and how fast the work is done."""
    metadata = {"group": group, "help": help, "ge": ge, "le": le, "shapes": shapes}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """What a user asks for. Raises UserError, naming the field, for a value out of range."""

    train_data: str = knob(
        "Required", "Training data: a JSONL file of {prompt, completion}, {text} or {messages} rows. "
        "A path, https:// or s3:// address; or shards: a folder, or a pattern such as "
        "`s3://bucket/day=*/**/*.jsonl`, joined in the order of their names. .gz and .zst are unpacked. "
        "csv: or parquet: in front of the address reads tables whose columns are named like the keys; alpaca: and "
        "sharegpt: read JSONL in these forms.")
    base_model: str = knob(
        "Required", "Base model: a folder in Hugging Face format (path or s3://) or a hub name owner/name.")
    destination: str = knob(
        "Required", "Model that gets the trained version: owner/name, such as acme/summarizer; lower-case letters, "
        "digits and single . _ - between them.", shapes="place")
    validation_data: str = knob("Data", "Held-out data in the same format; empty: split off the training data.", "")
    columns: str = knob(
        "Data", "Columns or keys of the data that have other names, such as `prompt=question,completion=answer`; the "
        "validation data's too. All others are left out.", "")
    num_validation_samples: int = knob(
        "Data", "Held-out rows: split off train_data (at most a tenth of it), or the first rows of "
        "validation_data.", 50, ge=1)
    drop: Drop = knob(
        "Data", "Training rows to leave out. duplicates: copies of earlier rows. leaks: those whose prompt stands in "
        "validation_data. all: these, near copies of training or validation rows, and rows that the data report calls "
        "doubtful (control characters, few letters, repetitions, answers that are the prompt). Kept in dropped.jsonl "
        "beside the split.",
        "none")
    num_train_epochs: int = knob("Schedule", "Passes over the training data.", 1, ge=1)
    max_steps: int = knob("Schedule", "Stop after this many optimizer steps; 0: no limit.", 0, ge=0)
    train_batch_size: int = knob(
        "Schedule", "Rows per optimizer step, over all GPUs together. A row is an example, or a pack of "
        "examples with pack_sequences.", 4, ge=1)
    learning_rate: float = knob("Schedule", "Peak learning rate of AdamW.", 1e-4, ge=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = knob(
        "Schedule", "How the learning rate falls to 0 after the warm-up.", "linear")
    warmup_ratio: float = knob(
        "Schedule", "Share of the steps in which the learning rate rises from 0.", 0.03, ge=0, le=1)
    weight_decay: float = knob("Schedule", "Decoupled weight decay of AdamW.", 0.0, ge=0)
    max_grad_norm: float = knob("Schedule", "Gradients are scaled down to this norm; 0: not clipped.", 1.0, ge=0)
    peft_method: Method = knob(
        "Method", "lora: train small adapters beside the frozen base. qlora: the same with the base in 4 bits "
        "(needs the extra gpu). full: train every weight.", "lora")
    lora_rank: int = knob("Method", "Rank of the adapters.", 8, ge=1, le=1024)
    lora_alpha: int = knob("Method", "Scale of the adapters; they are multiplied by alpha / rank.", 16, ge=1)
    lora_dropout: float = knob("Method", "Dropout in front of the adapters.", 0.05, ge=0, le=1)
    lora_targets: str = knob(
        "Method", "Layers with adapters: all-linear, or names such as q_proj,v_proj.", "all-linear")
    base_version: str = knob(
        "Method", "Version to go on from, instead of the base model's own weights: owner/name:2, owner/name:champion, "
        "or 64 hex digits. It has the same base_model; with lora and qlora also the same lora_rank, lora_alpha, "
        "lora_targets and use_rslora. Empty: from the base.", "")
    use_rslora: bool = knob(
        "Method", "Rank-stabilised LoRA (arXiv 2312.03732): adapters are multiplied by alpha / sqrt(rank) instead of "
        "alpha / rank, for ranks above 32.", False)
    loraplus_lr_ratio: float = knob(
        "Method", "LoRA+ (arXiv 2402.12354): the learning rate of the adapters' B matrices is this multiple of "
        "learning_rate; the authors take 16. 1: the same rate for all.", 1.0, ge=1, le=1000)
    neftune_alpha: float = knob(
        "Method", "NEFTune (arXiv 2310.05914): while it trains, noise is added to the embeddings, uniform within "
        "alpha / sqrt(tokens of the example x hidden size); the authors take 5 to 15. 0: no noise.", 0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit"] = knob(
        "Method", "adamw_8bit keeps the optimizer's state in 8 bits (bitsandbytes): a quarter of its memory. It needs "
        "a CUDA device and the extra gpu.", "adamw")
    pack_sequences: bool = knob("Data", "Put several examples into one row of chunk_size tokens, isolated.", False)
    wrap_packed_sequences: bool = knob(
        "Data", "Split an example longer than chunk_size over several rows, losing no part of an answer; otherwise its "
        "prompt is cut on the left (a conversation loses its oldest exchanges), then its completion on the right. The "
        "report counts what is left out.", False)
    chunk_size: int = knob("Data", "Longest row in tokens; the base model's context is the upper limit.", 2048, ge=8)
    prompt_format: PromptFormat = knob(
        "Data", "plain: the text of a {prompt, completion} or {text} row stays text, also where it spells a special "
        "token such as `<s>`. templated: the rows were written by a chat template already, `<s>[INST] ... [/INST]` or "
        "`<|im_start|>user ...`: special tokens of the base are read as such, in prompts of the predictor too, and no "
        "second begin or end token is added.", "plain")
    train_on_prompt: bool = knob("Data", "Also compute the loss on prompts, not only on completions.", False)
    seed: int = knob("Schedule", "Seed of the sample order, the dropout and the adapters.", 42, ge=0, le=2**31 - 1)
    run_validation: bool = knob("Schedule", "Compute the validation loss after every epoch.", True, shapes="scores")
    validation_steps: int = knob(
        "Schedule", "Optimizer steps between validations; 0: after every epoch. There is always one at the end.", 0,
        ge=0)
    early_stopping_patience: int = knob(
        "Schedule", "Stop after this many validations in a row without a lower loss; 0: never.", 0, ge=0)
    keep_weights: Literal["last", "best"] = knob(
        "Schedule", "Weights of the last step, or of the lowest validation loss.", "last")
    validation_batch_size: int = knob(
        "Hardware", "Held-out rows per forward pass on each GPU.", 1, ge=1, shapes="place")
    validation_prompt: str = knob(
        "Evaluation", "A prompt answered after training; the answer is in the evaluation.", "", shapes="scores")
    task_type: TaskType = knob(
        "Evaluation", "What the model is for, which decides how it is scored and judged. summary: ROUGE. "
        "classification: accuracy, macro-F1. question: exact match, F1. extraction: JSON field F1. chat: ROUGE-L, "
        "perplexity. style: loss, perplexity, bits per byte. auto: ROUGE, and the loss for {text} rows.",
        "auto", shapes="scores")
    num_evaluation_samples: int = knob("Evaluation", "Held-out rows answered and scored.", 50, ge=1, shapes="scores")
    max_new_tokens: int = knob("Evaluation", "Longest answer in the evaluation, in tokens.", 128, ge=1, shapes="scores")
    gate: Gate = knob(
        "Evaluation", "Deploy only a version that is not worse, by a paired test on the same held-out rows, than its "
        "base model, than the destination's champion, or always (off). auto: than the champion where there is one, "
        "else than the base. On fewer than 10 held-out rows nothing is refused.", "auto", shapes="scores")
    deploy: bool = knob("Evaluation", "Switch the predictor to the new version.", True, shapes="place")
    gradient_accumulation_steps: int = knob(
        "Hardware", "Micro-batches that a GPU's share of a batch is cut into: less memory, same numbers. 0: as few as "
        "the forecast finds room for.", 0, ge=0, shapes="place")
    activation_checkpointing: bool = knob(
        "Hardware", "Compute activations again in the backward pass: much less memory, a third (full) to a half (LoRA) "
        "more time, and layers are not compiled.", False, shapes="place")
    parallelism: Literal["auto", "ddp", "fsdp", "hsdp"] = knob(
        "Hardware", "ddp: a copy of the weights on each GPU. fsdp: a shard on each. hsdp: shards within a node. "
        "auto: ddp if it fits the GPU's memory, else hsdp or fsdp.", "auto", shapes="place")
    compile_layers: Compile = knob(
        "Hardware", "Compile each layer (torch.compile): 10 to 40 s at the start, then 1.4 to 2 times the speed on "
        "a GPU; not faster on a CPU. With pack_sequences every micro-batch is filled up to the same size. auto: on for "
        "packed bf16 on a GPU if that pays.", "auto", shapes="place")
    checkpoint_steps: int = knob("Hardware", "Optimizer steps between checkpoints.", 50, ge=1, shapes="place")
    num_ranks: int = knob(
        "Hardware", "Training processes, one a GPU. 0: all GPUs of the machine, or one process on a CPU.", 0, ge=0,
        le=4096, shapes="place")
    precision: Precision = knob(
        "Hardware", "auto: bf16 on a GPU that has it, else fp32; on a CPU always fp32, so that all give the same "
        "numbers.", "auto")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, FIELD_TYPES[field.name], getattr(self, field.name))
        check_destination(self.destination)
        columns_named(self.columns)
        for name in ADDRESSES:
            refuse_secrets(name, getattr(self, name))
        if self.peft_method == "qlora" and self.parallelism in ("fsdp", "hsdp"):
            raise UserError(f"parallelism is {self.parallelism} and peft_method is qlora",
                            allowed="auto or ddp with qlora",
                            fix="A 4-bit base is small: 7 billion weights take about 5 GB on each GPU.")
        if self.compile_layers == "on" and self.activation_checkpointing:
            raise UserError("compile_layers is on and activation_checkpointing too", allowed="one of them",
                            fix="Leave compile_layers on auto or off: torch does not compile what it computes again.")
        if self.peft_method == "full" and (self.use_rslora or self.loraplus_lr_ratio != 1):
            raise UserError("peft_method is full, and use_rslora or loraplus_lr_ratio is set", allowed="lora or qlora",
                            fix="Leave both out: there are no adapters.")
        if self.optimizer == "adamw_8bit" and self.parallelism in ("fsdp", "hsdp"):
            raise UserError(f"parallelism is {self.parallelism} and optimizer is adamw_8bit",
                            allowed="auto or ddp with adamw_8bit",
                            fix="Leave optimizer out: shards need no smaller state on each GPU.")
        if not self.run_validation and (self.keep_weights == "best" or self.early_stopping_patience):
            raise UserError("run_validation is off, but keep_weights=best and early_stopping_patience need it",
                            fix="Leave run_validation on.")

    def numbers(self, shapes: Literal["weights", "scores"]) -> dict[str, Any]:
        """The knobs that the weights, or only their scores, depend on. Data and base go by digest."""
        apart = {"train_data", "validation_data", "base_model", "drop", "columns"}
        fields = (f for f in dataclasses.fields(self) if f.metadata["shapes"] == shapes and f.name not in apart
                  and not (f.name in LATER and getattr(self, f.name) == f.default))
        found = {f.name: getattr(self, f.name) for f in fields}
        if "base_version" in found:
            found["base_version"] = self.base_version.rpartition(":")[2]  # the id, whatever its model is called
        return found

    def to_json(self) -> str:
        """One line of JSON, the form in which a spec travels."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainingSpec:
        """Read back `to_json`. Raises UserError for an unknown field."""
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainingSpec:
        """A spec from a mapping. Raises UserError for unknown or missing fields."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(
                    f"unknown parameter {shown(name)}", allowed="one of " + ", ".join(known),
                    fix=did_you_mean(name, known).strip() or "Check the spelling.")
        for name, field in known.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise UserError(f"{name} is missing", fix=field.metadata["help"])
        return cls(**values)


FIELD_TYPES = typing.get_type_hints(TrainingSpec)
FIELDS = sorted(dataclasses.fields(TrainingSpec), key=lambda field: get_args(Group).index(field.metadata["group"]))
"""All knobs, group by group."""


def range_of(field: dataclasses.Field[Any]) -> str:
    """The numbers that a knob takes, in words; empty where there is no limit."""
    low, high = field.metadata["ge"], field.metadata["le"]
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low} to {high}"


def columns_named(columns: str) -> dict[str, str]:
    """{key of a row: the column that is read as it}. Raises UserError for anything else than key=column,..."""
    pairs = [part.split("=") for part in columns.split(",")] if columns.strip() else []
    named = {pair[0].strip(): pair[-1].strip() for pair in pairs}
    kinds = [set(kind) <= set(named) <= {*kind, "tools"} for kind in COLUMN_KINDS]
    if pairs and (any(len(pair) != 2 or not pair[1].strip() for pair in pairs) or len(named) != len(pairs)
                  or not any(kinds) or re.search(r"[\[\]]", columns)):
        raise UserError(f"columns is {shown(columns)}", allowed="prompt=NAME,completion=NAME or text=NAME or "
                        "messages=NAME (and tools=NAME), with the names in the data", fix="Name each key once.")
    return named


def check_destination(destination: str) -> None:
    """Raise UserError unless `destination` is a plain `owner/name`."""
    if not DESTINATION.fullmatch(destination) or len(destination) > DESTINATION_CHARACTERS:
        raise UserError(
            f"destination is {shown(destination)}",
            allowed=f"owner/name of lower-case letters, digits and single . _ - between them, "
                    f"at most {DESTINATION_CHARACTERS} characters",
            fix="Choose a name such as acme/summarizer.")


def refuse_secrets(name: str, address: str) -> None:
    """Raise UserError for an address with a password or a signature in it: Prefect stores and shows parameters."""
    if found := secret_in(address):
        raise UserError(
            f"the address has {found}", where=name,
            allowed="an address without secrets, because Prefect stores and shows parameters in clear",
            fix="Leave it out: keys come from the environment. `anneal upload` takes a signed https:// address, and "
                "prints one without a signature.")


def _check(field: dataclasses.Field[Any], kind: Any, value: Any) -> None:
    """Raise UserError unless `value` fits the field's type and range."""
    name, limits = field.name, field.metadata
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{name} is {shown(value)}", allowed="one of " + ", ".join(get_args(kind)),
                            fix=did_you_mean(str(value), get_args(kind)).strip())
        return
    fits = isinstance(value, (int, float) if kind is float else kind) and not (kind is not bool and value is True)
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{name} is {shown(value)}", allowed=f"a value of type {kind.__name__}")
    if kind is str and field.default is dataclasses.MISSING and not value.strip():
        raise UserError(f"{name} is empty", fix=limits["help"])
    if kind in (int, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}", allowed="a finite number")
    if limits["ge"] is not None and value < limits["ge"]:
        raise UserError(f"{name} is {value}", allowed=f"at least {limits['ge']}")
    if limits["le"] is not None and value > limits["le"]:
        raise UserError(f"{name} is {value}", allowed=f"at most {limits['le']}")
