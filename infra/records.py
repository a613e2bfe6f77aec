"""What the steps hand over: small frozen records that name folders in the store.

What is large stays in the store; a record is a little JSON with a `folder` there, digests and counts. Standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

RowKind = Literal["prompt", "text", "messages"]
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all records: JSON in and out."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Read back `to_json`; keys of a newer release are ignored."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    @classmethod
    def kept(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Read back what the store holds. None where it holds nothing, or the record of another release that lacks
        what this one needs: the step is done again."""
        try:
            return cls.of(dict(values)) if values is not None else None
        except (KeyError, TypeError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True)
class Base(Record):
    """A base model on this machine."""

    name: str
    """What the user called it."""
    path: str
    """Folder on this machine in Hugging Face format."""
    digest: str
    """sha256 over config, tokenizer and weight files."""
    context_tokens: int
    """Longest sequence the model was made for."""
    revision: str = ""
    """Commit of the hub that `name` was fetched at; empty: it is no name of the hub."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Record):
    """An immutable JSONL file in the store: `folder`/data.jsonl, and shards.json if it was joined of several."""

    folder: str
    sha256: str
    bytes: int
    source: str
    """Where it came from, without credentials."""
    shards: int = 1
    """Files that it was joined of; shards.json says where each begins."""
    unit: str = "line"
    """What its lines were there: records of a table."""
    unused: list[str] = field(default_factory=list)
    """Columns of a table that were left out."""


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """Something about the data that is worth knowing and no error."""

    what: str
    count: int
    first: list[str]
    """Where it was found, the first few times."""

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.what}: {self.count} ({', '.join(self.first)}{more})"


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """Clean rows in the store: `folder`/train.jsonl and `folder`/validation.jsonl."""

    folder: str
    digest: str
    kind: RowKind
    separator: str
    """Put between prompt and completion: a line break when neither brings its own space."""
    train_rows: int
    validation_rows: int
    duplicates: int = 0
    """Repeated prompts."""
    leaks: int = 0
    """Validation prompts that also stand in the training rows."""
    longest_characters: int = 0
    data: str = ""
    """Folder of the training data that it was first made of."""
    dropped: int = 0
    """Training rows left out, in `folder`/dropped.jsonl."""
    findings: list[Finding] = field(default_factory=list)
    compared: int = 0
    """Rows that were looked at for near duplicates."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Read back `to_json`."""
        return super().of({**values, "findings": [Finding.of(one) for one in values.get("findings", [])]})


@dataclass(frozen=True, kw_only=True)
class PackCounts(Record):
    """One packed split. All counts but `rows` and `examples` are in tokens."""

    rows: int
    examples: int
    tokens: int
    labelled: int
    truncated: int
    """Examples cut to chunk_size."""
    lost: int
    """Tokens cut off."""
    split: int
    """Examples continued in further rows."""
    longest: int
    fill: float
    """tokens / (rows x chunk_size)."""


@dataclass(frozen=True, kw_only=True)
class Pack(Record):
    """Token rows in the store: `folder`/train/*.npy and `folder`/validation/*.npy."""

    folder: str
    digest: str
    chunk_tokens: int
    train: PackCounts
    validation: PackCounts
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Ten examples: {"tokens", "learned", "runs": [{"text", "learned"}], "more"}; special tokens included."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """{"train", "validation"}: how many examples have fewer than `bin_tokens` tokens, then fewer than twice as many,
    and so on; before they are cut."""
    bin_tokens: int = 0
    findings: list[Finding] = field(default_factory=list)
    """What tokenising and cutting found in the rows."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Read back `to_json`."""
        counts = {name: PackCounts.of(values[name]) for name in ("train", "validation")}
        findings = [Finding.of(one) for one in values.get("findings", [])]
        return super().of({**values, **counts, "findings": findings})


@dataclass(frozen=True, kw_only=True)
class Trained(Record):
    """Trained weights in the store: `folder`/model."""

    folder: str
    training_id: str
    digest: str
    method: str
    steps: int
    ranks: int
    seconds: float  # training time over all launches, warm-up included
    tokens_per_s: float  # real tokens, no padding, over all ranks
    trainable: int  # parameters
    loss_first: float
    loss_last: float
    peak_memory_bytes: int
    resumed_from: int = 0
    """Step of the checkpoint that the last launch started from."""
    planned_steps: int = 0
    """All steps, where a person finished the training before them; else 0."""
    auto_class: str = "AutoModelForCausalLM"  # of transformers, which loaded the base
    loss_validation: float | None = None
    """The last validation's; None where nothing was validated, and in a record of an earlier release."""
    loss_best: float | None = None
    """The lowest of all validations, at `best_step`."""
    best_step: int = 0

    @property
    def curve(self) -> dict[str, float]:
        """What MLflow and reports show of the training's losses; in nats, of labelled tokens."""
        found = {"train_loss_first": self.loss_first, "train_loss_last": self.loss_last,
                 "validation_loss_last": self.loss_validation, "validation_loss_best": self.loss_best,
                 "best_step": self.best_step or None}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Scores(Record):
    """One row of the ROUGE table: F-measures with 95 % bootstrap intervals, 0..1."""

    rouge1: tuple[float, float, float]
    """(low, mean, high)"""
    rouge2: tuple[float, float, float]
    rougeL: tuple[float, float, float]
    rougeLsum: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """The tuned model's `value` beside the `other` one's on the same held-out rows: tasks/scoring/paired.py."""

    metric: str
    value: float
    other: float
    difference: list[float]
    """[low, value - other, high]: a 95 % interval of the paired bootstrap."""
    outcome: str
    """better, no difference seen, or worse."""
    rows: int
    won: int  # rows on which `value` is the better one
    lost: int
    tied: int
    least: float | None = None
    """The smallest true difference that so many rows show with a power of 80 %."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """How good the tuned model is, beside its base and a baseline."""

    folder: str
    samples: int
    rouge: dict[str, dict[str, list[float]]]
    """{"tuned" | "base" | "lead3": {"rougeL": [low, mean, high], ...}}; empty for text rows and where `scores` are."""
    loss: dict[str, float]
    """{"tuned", "base"}: mean cross-entropy in nats at labelled held-out tokens."""
    passed: bool
    verdict: str
    """A sentence for each comparison, and why the gate refuses the version if it does."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """The first few rows: prompt, reference, tuned, base."""
    validation_answer: str = ""
    stop_ids: list[int] = field(default_factory=list)
    """Token ids that ended the answers, and end them in the predictor; empty in a record of an earlier release."""
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """The same for another task_type than auto and summary: {"tuned": {"accuracy": [low, value, high], ...}}."""
    confusions: list[list[str | int]] = field(default_factory=list)
    """Of a classification, the tuned model's most frequent mistakes: [label, answer, rows]; answer "": no label."""
    tokenizer: str = ""
    """What ROUGE counted: "rouge-score" or "unicode"; empty without ROUGE, and in a record of an earlier release."""
    compared: dict[str, Comparison] = field(default_factory=dict)
    """{"base" | "lead3" | "most_frequent" | "champion": ...}; the champion's is of the moment and not stored."""
    champion: int | None = None  # its number; 0: there was none; None: not asked for

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Read back `to_json`."""
        found = {name: Comparison.of(one) for name, one in values.get("compared", {}).items()}
        return super().of({**values, "compared": found})


@dataclass(frozen=True, kw_only=True)
class Version(Record):
    """A registered version of a destination."""

    destination: str
    id: str
    """sha256 over the version's content."""
    number: int
    """MLflow's version number."""
    folder: str
    """The same files in the store."""
    uri: str
    """models:/name/number"""
    training_id: str


@dataclass(frozen=True, kw_only=True)
class Deployment(Record):
    """What the predictor serves after the deploy step."""

    version: str
    status: Literal["serving", "skipped"]
    url: str = ""
    reason: str = ""
    smoke: str = ""
    """The answer to the smoke prompt."""


@dataclass(frozen=True, kw_only=True)
class Answers(Record):
    """A file's prompts with what a version answered: `folder`/answers.jsonl."""

    folder: str
    rows: int
    version: str
    """64 hex digits."""
