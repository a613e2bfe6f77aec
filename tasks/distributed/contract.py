"""The contract between the flow and its child processes: one JSON file in, files and a code out.

In:   job.json     Out: events.jsonl while it runs, result.json at the end, error.json if it fails
The flow imports this file too, so it stays free of torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra import errors
from infra.errors import AnnealError, Transient, UserError
from infra.files import write_atomic
from infra.records import RowKind
from infra.spec import Precision

JOB, EVENTS, RESULT, ERROR = "job.json", "events.jsonl", "result.json", "error.json"
SPLITS = ("train", "validation")
ANSWERS_FILE, LOSSES_FILE = "answers.jsonl", "losses.jsonl"
"""What generate.py says of each held-out row; every rank leaves its share under `share_name`."""
FINISH = "finish"
"""A file in a training's folder: from the step in it on, the ranks end and keep the weights."""
BEST = "best"
"""The folder with the weights of the lowest validation loss so far."""
ROOM, ROOM_BYTES = "room", 1 << 14
"""A file that gives its place to error.json when the disk is full."""
GPUS_SEEN = "ANNEAL_GPUS_SEEN"
"""The variable that tells a child how many GPUs nvidia-smi lists."""
CHUNK_LOGITS = 1 << 25
"""Largest number of logits that training holds at a time: tasks/distributed/cross_entropy.py."""
BLOCK_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 23}
"""Those that are held in fp32 with their softmax: a processor's cache, or enough to keep a GPU busy."""
VALIDATION_PROMPT = -1
"""Row number of the answer to the spec's validation_prompt."""
J = TypeVar("J", bound="Job")


def checkpoint_name(step: int) -> str:
    """Of the folder with the state after so many steps."""
    return f"step-{step:06d}"


def rows_name(part: str) -> str:
    """Of the file with a split's train, validation or dropped rows, a row a line."""
    return f"{part}.jsonl"


def share_name(file: str, model: str, rank: int | str) -> str:
    """Of one rank's share of ANSWERS_FILE or LOSSES_FILE; rank "*" matches every rank's."""
    return f"{Path(file).stem}-{model}-{rank}.jsonl"


def step_of(name: str) -> int:
    """The step in the name of a checkpoint's folder; -1 in other names."""
    found = re.fullmatch(r"step-(\d{6,})", name)
    return int(found[1]) if found else -1


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a training, the newest first."""
    return sorted((path for path in run.glob("step-*") if step_of(path.name) >= 0),
                  key=lambda path: step_of(path.name), reverse=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Base of all jobs. `out` is the folder that takes the files above."""

    out: str

    def write(self) -> Path:
        """Leave job.json for the child, and nothing of an earlier try."""
        path = Path(self.out) / JOB
        for name in (RESULT, ERROR):
            path.with_name(name).unlink(missing_ok=True)
        write_atomic(path.with_name(ROOM), bytes(ROOM_BYTES))
        write_atomic(path, json.dumps(dataclasses.asdict(self), indent=1))
        return path

    def finish(self, result: dict[str, Any]) -> None:
        """Leave result.json: the last thing a child does."""
        write_atomic(Path(self.out) / RESULT, json.dumps(result, indent=1))


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Job):
    """Tokenise and pack (encode.py). `rows` is a folder with the rows of SPLITS."""

    rows: str
    tokenizer: str
    kind: RowKind
    separator: str
    chunk_tokens: int
    pack: bool
    wrap: bool
    train_on_prompt: bool
    templated: bool = False
    """Texts spell special tokens, and mean them."""
    processes: int = 1
    """How many tokenise at a time."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """Train (train.py). `spec` is a TrainingSpec as JSON; `key` ties checkpoints to this training."""

    spec: str
    base: str
    packs: str
    chunk_tokens: int
    key: str
    start: str = ""
    """Folder of the version to go on from: its adapter, or all its weights; empty: the base's own."""
    parallelism: str = "ddp"
    """ddp, fsdp or hsdp: `auto` is decided before."""
    peak_tflops: float = 0.0
    """Of all devices together, for the share of it that is used; 0: not known."""
    usd_per_hour: float = 0.0
    """Of all devices together."""


@dataclass(frozen=True, kw_only=True)
class GenerateJob(Job):
    """Answer the held-out rows (generate.py). `rows` is the file of them."""

    spec: str
    base: str
    tuned: str
    packs: str
    rows: str
    kind: RowKind
    separator: str
    context_tokens: int
    models: tuple[str, ...] = ("tuned", "base")
    """Who answers: the trained weights, their base, or both."""
    row_losses: bool = False
    """Also leave the held-out loss of every row."""


@dataclass(frozen=True, kw_only=True)
class MergeJob(Job):
    """Merge an adapter into its base (merge.py). `folder` holds the tokenizer's files and takes the model."""

    base: str
    tuned: str
    """The adapter's folder; empty: `base` is the whole model, trained already."""
    folder: str
    dtype: Precision
    rows: str
    """The file of the held-out rows to compare logits on; empty: a fixed row of token ids."""
    kind: RowKind
    separator: str
    context_tokens: int


@dataclass(frozen=True, kw_only=True)
class ProveJob(Job):
    """Compare the loss with the base's own, on a few tokens (prove.py)."""

    base: str
    spec: str
    """TrainingSpec as JSON, its precision settled."""


def main_of(kind: type[J], work: Callable[[J], int]) -> None:
    """Run a child: read the job, do the work, turn errors into error.json and an exit code."""
    job = kind(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        code = work(job)
    except OSError as error:
        code = _fail(job, errors.from_os_error(error, job.out))
    except AnnealError as error:
        code = _fail(job, error)
    sys.exit(code)


def _fail(job: Job, error: AnnealError) -> int:
    """A rank that only lost the others leaves the cause that another rank has told."""
    path = Path(job.out) / ERROR
    (path.parent / ROOM).unlink(missing_ok=True)
    if not (isinstance(error, Transient) and path.exists()):
        errors.write_error(path, error)
    print(error, file=sys.stderr, flush=True)
    for code, kind in errors.BY_EXIT_CODE.items():
        if isinstance(error, kind):
            return code
    return errors.EXIT_USER_ERROR if isinstance(error, UserError) else 1
