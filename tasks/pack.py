"""Tokenise and pack the clean rows.

In:   splits/<key>, the base model's tokenizer     Out: packs/<key>/{train,validation}/*.npy
The work is done by a child process (tasks/distributed/encode.py): tokenizers pull in torch, and
the flow's process stays free of it. Dies half-way: nothing is in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prefect.logging import get_run_logger

from infra.crashpoints import crashpoint
from infra.errors import UserError
from infra.files import digest_of
from infra.progress import ProgressLog
from infra.records import Base, Pack, RowKind, Split
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.distributed.contract import SPLITS, EncodeJob, rows_name
from tasks.distributed.events import read_events
from tasks.launcher.jobs import CONTRACT_FILES, run_child
from tasks.runs.retries import HOUR_S, found_done, step

FORMAT: dict[RowKind, int] = {"prompt": 2, "text": 2, "messages": 4}
WRAP, LAYOUT = 2, 2
"""FORMAT is raised when the same rows would be packed differently, WRAP where that is so of those longer than a row:
their models are trained again. LAYOUT is when they would be written differently: they are only packed again."""
KEEP_THEM = ". A larger chunk_size keeps them"


def pack(
    settings: Settings, store: Store, split: Split, base: Base, spec: TrainingSpec, *,
    say: Callable[[str], None] = lambda _: None,
) -> Pack:
    """Pack both splits. Rows have at most min(chunk_size, the base's context) tokens. `say` hears now and then how far
    it is."""
    chunk = min(spec.chunk_size, base.context_tokens)
    rows = store.fetch(split.folder)
    with store.draft() as draft:
        so_far = ProgressLog(say, "tokenised", "MB", sum((rows / rows_name(name)).stat().st_size for name in SPLITS))
        job = EncodeJob(
            out=str(draft.path), rows=str(rows), tokenizer=base.path, kind=split.kind, separator=split.separator,
            chunk_tokens=chunk, pack=spec.pack_sequences, wrap=spec.wrap_packed_sequences,
            train_on_prompt=spec.train_on_prompt, templated=spec.prompt_format == "templated",
            processes=settings.threads_for(1))

        def look() -> None:
            for event in read_events(draft.path)[0][-1:]:
                if event["event"] == "tokenised":
                    so_far.at(event["bytes"])

        counts = run_child(settings, job, "tasks.distributed.encode", on_poll=look)
        for name in CONTRACT_FILES:
            (draft.path / name).unlink(missing_ok=True)
        key = _key(split, base, spec)
        packed = Pack.of({"folder": _folder(key), "digest": key, "chunk_tokens": chunk, **counts})
        crashpoint("pack.before_commit")
        draft.commit(packed.folder, packed.to_json())
    return packed


def find_pack(store: Store, split: Split, base: Base, spec: TrainingSpec) -> Pack | None:
    """The pack made earlier from the same rows, if it still verifies."""
    manifest = store.find(_folder(_key(split, base, spec)))
    return Pack.kept(manifest.record if manifest else None)


def _key(split: Split, base: Base, spec: TrainingSpec) -> str:
    knobs: list[object] = [spec.chunk_size, spec.pack_sequences, spec.wrap_packed_sequences, spec.train_on_prompt]
    if spec.wrap_packed_sequences and split.kind == "prompt" and not spec.train_on_prompt:
        knobs.append(WRAP)
    if spec.prompt_format != "plain":
        knobs.append(spec.prompt_format)
    return digest_of([FORMAT[split.kind], split.digest, base.digest, *knobs])


def _folder(key: str) -> str:
    return f"packs/{digest_of([LAYOUT, key])[:32]}"


def as_formatted(split: Split, spec: TrainingSpec) -> Split:
    """The split as `prompt_format` has it: between prompt and completion of a template nothing is put.

    Raises UserError for conversations that are said to be rendered already.
    """
    if spec.prompt_format == "plain":
        return split
    if split.kind == "messages":
        raise UserError("prompt_format is templated and the rows are conversations", where="train_data",
                        allowed="{prompt, completion} or {text} rows",
                        fix="Leave prompt_format out: the base's chat template writes them.")
    return replace(split, separator="")


def notes_of(packed: Pack, spec: TrainingSpec) -> list[str]:
    """What became of the rows that nobody asked for, a sentence each."""
    notes = []
    if packed.chunk_tokens < spec.chunk_size:
        notes.append(f"chunk_size is lowered from {spec.chunk_size} to {packed.chunk_tokens} tokens, "
                     "the longest context of the base model")
    for name, counts in (("training", packed.train), ("held-out", packed.validation)):
        if counts.truncated:
            notes.append(
                f"{counts.truncated} of {counts.examples} {name} rows ({counts.truncated / counts.examples:.0%}) are "
                f"longer than {packed.chunk_tokens} tokens and were cut; {counts.lost} tokens are lost"
                f"{KEEP_THEM if packed.chunk_tokens == spec.chunk_size else ''}")
    return notes + [str(finding) for finding in packed.findings]


@step("pack", timeout_s=6 * HOUR_S)
def pack_task(split: Split, base: Base, spec: TrainingSpec, subject: str) -> Pack:
    """Tokenise and pack; returns the Pack."""
    settings = Settings()
    store = Store(settings)
    found = find_pack(store, split, base, spec)
    packed = found or pack(settings, store, split, base, spec, say=get_run_logger().info)
    for note in notes_of(packed, spec):
        get_run_logger().warning(note)
    return found_done(packed) if found else packed
