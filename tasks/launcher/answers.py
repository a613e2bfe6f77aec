"""Answers of models to held-out rows, kept in the store: no model answers the same rows twice.

In:   weights, held-out rows, packs     Out: answers/<key>/answers.jsonl and losses.jsonl
The key is made of what the answers depend on: weights and base by digest, rows by digest, the settings of generation.
So a base answers once for all trainings on the same rows, and what a version answered when it was new is there when it
is the champion. Dies half-way: nothing is in the store; run it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import Missing
from infra.files import digest_of
from infra.progress import ProgressLog
from infra.records import Base, Pack, Split
from infra.settings import Settings
from infra.spec import PromptFormat
from infra.storage.store import Store, scratch_folder
from tasks.distributed.contract import ANSWERS_FILE, LOSSES_FILE, GenerateJob, rows_name, share_name
from tasks.distributed.events import read_events
from tasks.launcher.jobs import run_child
from tasks.launcher.placement import Placement

log = logging.getLogger(__name__)
ANSWERS = "answers"
ANSWERS_FORMAT = 1
"""Raised when the same weights would answer differently."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model whose answers are wanted."""

    name: str
    """tuned or base: with the trained weights, or without them."""
    digest: str
    """Of the trained weights; of the base where it answers alone."""
    tuned: Path
    """Folder of the trained weights."""
    base: Base
    separator: str
    """Between prompt and answer."""
    prompt_format: PromptFormat = "plain"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model answered."""

    texts: dict[int, str]
    """By row number; that of the validation prompt is contract.VALIDATION_PROMPT."""
    losses_N3: NDArray[np.float64]
    """In the rows' order: nats, labelled tokens, their bytes. Empty where losses were not asked for row by row."""
    loss: float
    stop_ids: list[int]
    """Tokens that end an answer."""


class KeptAnswers:
    """The kept answers for one evaluation: the same rows and settings for all models."""

    def __init__(
        self, settings: Settings, store: Store, placement: Placement, split: Split, pack: Pack, *, row_losses: bool,
        slots: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`slots`: waits for GPUs and holds them, while models answer."""
        self._slots = slots
        self._settings, self._store, self._row_losses = settings, store, row_losses
        self._spec, self._ranks, self._split, self._pack = placement.spec, placement.ranks, split, pack

    def name_of(self, asked: Asked) -> str:
        """Where they are in the store."""
        spec, split = self._spec, self._split
        key = digest_of([
            ANSWERS_FORMAT, asked.digest, asked.base.digest, asked.separator, split.digest, split.kind,
            spec.num_evaluation_samples, spec.max_new_tokens, spec.precision,
            self._pack.digest if self._row_losses else "",
            *([asked.prompt_format] if asked.prompt_format != "plain" else [])])
        return f"{ANSWERS}/{key[:32]}"

    def find(self, asked: Asked, *, whole: bool = True) -> Answered | None:
        """What was kept. `whole`: the loss on these packs and the answer to the validation prompt are wanted too."""
        manifest = self._store.find(self.name_of(asked))
        if manifest is None:
            return None
        record = manifest.record
        if whole and (record["pack"], record["prompt"]) != (self._pack.digest, self._spec.validation_prompt):
            return None
        folder = self._store.fetch(self.name_of(asked))
        losses = [[row["nats"], row["tokens"], row["bytes"]] for row in _lines(folder, LOSSES_FILE)]
        return Answered(
            texts={row["row"]: row["text"] for row in _lines(folder, ANSWERS_FILE)}, loss=record["loss"],
            stop_ids=record["stop_ids"],
            losses_N3=np.array(losses, np.float64).reshape(-1, 3))

    def kept(self, asked: Asked, *, whole: bool = True) -> Answered:
        """As `find`. Raises Missing where nothing was kept."""
        found = self.find(asked, whole=whole)
        if found is None:
            raise Missing(f"{self.name_of(asked)} is missing or damaged", where=f"store {self._store.root}",
                          fix="Run the same training again; the rows are answered again.")
        return found

    def generate(self, models: Sequence[Asked]) -> None:
        """Let models of one base answer in one child process, and keep what they say."""
        if not models:
            return
        first = models[0]
        with self._slots(), scratch_folder(self._settings.home_path / "work") as work:
            spec = replace(self._spec, prompt_format=first.prompt_format)
            job = GenerateJob(
                out=str(work), spec=spec.to_json(), base=first.base.path, tuned=str(first.tuned),
                packs=str(self._store.fetch(self._pack.folder)), kind=self._split.kind, separator=first.separator,
                rows=str(self._store.fetch(self._split.folder) / rows_name("validation")),
                context_tokens=first.base.context_tokens, models=tuple(one.name for one in models),
                row_losses=self._row_losses)
            rows = 0 if job.kind == "text" else min(self._split.validation_rows, self._spec.num_evaluation_samples)
            result = run_child(self._settings, job, "tasks.distributed.generate", ranks=self._ranks,
                               on_poll=Answering(work, -(-rows // self._ranks) * len(models)).look)
            for one in models:
                self.keep(one, work, result)

    def keep(self, asked: Asked, work: Path, result: Mapping[str, Any]) -> None:
        """Put what a child left in `work` into the store."""
        with self._store.draft() as draft:
            for name in (ANSWERS_FILE, LOSSES_FILE):
                rows = sorted(_lines(work, share_name(name, asked.name, "*")), key=lambda row: int(row["row"]))
                with (draft.path / name).open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            draft.commit(self.name_of(asked), {
                "loss": result["loss"][asked.name], "stop_ids": result["stop_ids"], "pack": self._pack.digest,
                "prompt": self._spec.validation_prompt})


class Answering:
    """Tells how many of a rank's questions are answered, by the events of the child process."""

    def __init__(self, work: Path, rows: int) -> None:
        """`rows`: held-out rows, each counted once for every model that answers it."""
        self._work, self._offset, self._done, self._last = work, 0, 0, 0
        self._so_far = ProgressLog(log.info, "answered", "rows", rows)

    def look(self) -> None:
        """Read what is new."""
        events, self._offset = read_events(self._work, self._offset)
        for event in events:
            if event["event"] == "answered":
                self._last = event["rows"]
            if event["event"] == "evaluated":
                self._done, self._last = self._done + self._last, 0
        self._so_far.at(self._done + self._last)


def _lines(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """The lines of all ranks."""
    for path in sorted(folder.glob(pattern)):
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
