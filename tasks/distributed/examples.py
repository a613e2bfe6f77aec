"""Rows into examples: batches of a file's rows, their token ids and labels, cut or split to the length of a row.

In:   a clean JSONL file     Out: Encoded; nothing is dropped that is not counted
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from infra.errors import DataError
from infra.records import RowKind
from tasks.distributed.chat_marks import up_to_answer
from tasks.distributed.codec import Codec, Segment
from tasks.distributed.contract import EncodeJob

SHOWN = 20
"""Rows that are named."""
NO_PROMPT = "rows of whose prompt nothing is left in chunk_size tokens"
NO_END = "rows cut before the end of their answer: the model does not learn to stop there"
TEMPLATED = ("rows that spell special tokens of the base, which are read as plain text: prompt_format=templated reads "
             "them as the tokens, if the rows were written by the base's chat template")
UNTEMPLATED = ("rows without any special token of the base, though prompt_format is templated: they may have been "
               "written by the template of another family")
LEFT_OUT = "rows longer than chunk_size of which only a part of the prompt is kept"
BATCH_BYTES = 1 << 19
"""Of JSON, encoded at once."""


@dataclass
class Encoded:
    """The examples of a part as isolated segments, and what cutting did to them."""

    ids: list[NDArray[np.int32]] = field(default_factory=list)
    labels: list[NDArray[np.bool_]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of every example before it was cut or split."""
    truncated: int = 0
    lost: int = 0
    split: int = 0
    idle: list[tuple[int, int]] = field(default_factory=list)
    """(place in the file, tokens) of rows of which nothing is left to learn."""
    noted: dict[str, list[int]] = field(default_factory=dict)
    """{what: places in the file of the rows of which it is to be said}"""

    def note(self, what: str, at: int) -> None:
        """Say this of the row at that place in the file."""
        self.noted.setdefault(what, []).append(at)


def add(encoded: Encoded, codec: Codec, job: EncodeJob, path: Path, batch: dict[int, dict[str, Any]]) -> None:
    """Tokenise {place in the file: row}; cut or split rows longer than `chunk_tokens`, note what teaches nothing."""
    encode_rows = partial(codec.rows, job.kind, separator=job.separator, train_on_prompt=job.train_on_prompt)
    places = list(batch)
    try:
        all_segments = encode_rows(list(batch.values()))
    except DataError:
        for at, row in batch.items():
            with told_where(path, at):
                encode_rows([row])
        raise
    for number, what in codec.noted:
        encoded.note(what, places[number])
    for (at, row), segments in zip(batch.items(), all_segments, strict=True):
        if job.kind != "messages" and any(map(codec.spells_special, row.values())) != job.templated:
            encoded.note(UNTEMPLATED if job.templated else TEMPLATED, at)
        ids, labels = flatten(segments)
        encoded.lengths.append(len(ids))
        if len(ids) <= job.chunk_tokens:
            pieces = [(ids, labels)]
        elif job.wrap:
            spans = list(divided(labels, job.chunk_tokens))
            pieces = [(ids[start:end], learned) for start, end, learned in spans]
            encoded.split += 1
            if left := len(ids) - covered(spans):
                encoded.lost += left
                encoded.note(LEFT_OUT, at)
        else:
            if job.kind == "messages":
                segments = shortened(row, job.chunk_tokens, lambda one: encode_rows([one])[0])
            pieces = [cut(encoded, codec, job, segments, at)]
            encoded.truncated += 1
            encoded.lost += len(ids) - len(pieces[0][0])
        if not any(marks.any() for _, marks in pieces):
            encoded.idle.append((at, len(ids)))
            continue
        for piece_ids, piece_labels in pieces:
            encoded.ids.append(piece_ids)
            encoded.labels.append(piece_labels)


def cut(
    encoded: Encoded, codec: Codec, job: EncodeJob, segments: list[Segment], at: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """An example cut to a row, and a note where that does harm: no word of its prompt is left, or its end is not."""
    begin, prompt = question_in(segments, job.kind, len(codec.bos))
    ids, labels = flatten(segments)
    excess, room = len(ids) - job.chunk_tokens, max(0, prompt - max(1, begin))
    if job.kind != "text" and room and excess >= room:
        encoded.note(NO_PROMPT, at)
    if excess > room:
        encoded.note(NO_END, at)
    return truncate(ids, labels, job.chunk_tokens, begin=begin, prompt=prompt)


def batches_of(path: Path, start: int, size: int) -> Iterator[dict[int, dict[str, Any]]]:
    """The rows of a clean JSONL file that begin in `size` bytes from `start`, some at a time: {place in bytes: row}."""
    with path.open("rb") as file:
        at = start
        if start:
            file.seek(start - 1)
            at += len(file.readline()) - 1
        rows: dict[int, dict[str, Any]] = {}
        held = 0
        while at < start + size and (line := file.readline()):  # split at line feeds only
            rows[at] = json.loads(line)
            at += len(line)
            held += len(line)
            if held >= BATCH_BYTES:
                yield rows
                rows, held = {}, 0
        if rows:
            yield rows


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """All rows of a clean JSONL file."""
    for batch in batches_of(path, 0, path.stat().st_size):
        yield from batch.values()


def refuse_idle(path: Path, idle: list[tuple[int, int]], chunk_tokens: int) -> None:
    """Raise DataError if there are rows of which nothing is left to learn; the first of them are named."""
    if not idle:
        return
    numbers = line_numbers(path, [at for at, _ in idle[:SHOWN]])
    first, *others = (place_of(path, number) for number in numbers)
    more = f"; the same is true of {len(idle) - 1} more: {', '.join(others)}" if others else ""
    raise DataError(
        f"nothing of it is left to learn in {chunk_tokens} tokens: it has {idle[0][1]}, and what it teaches comes too "
        f"late{more}{', ...' if len(idle) > SHOWN else ''}", where=first,
        fix=f"Raise chunk_size, shorten what stands before the answer, or leave the row{'s' if others else ''} out.")


def line_numbers(path: Path, places: list[int]) -> list[int]:
    """The numbers, from 1, of the lines that begin at these bytes, which ascend."""
    numbers, number, at = [], 1, 0
    with path.open("rb") as file:
        for place in places:
            number += sum(chunk.count(b"\n") for chunk in _chunks(file, place - at))
            at = place
            numbers.append(number)
    return numbers


@contextmanager
def told_where(path: Path, at: int) -> Iterator[None]:
    """Say of a DataError where the row that begins at byte `at` stood in the user's file."""
    try:
        yield
    except DataError as error:
        (number,) = line_numbers(path, [at])
        raise DataError(error.found, where=place_of(path, number), fix=error.fix) from error


def place_of(path: Path, number: int) -> str:
    """Where the row with this number stood in the user's file; a split of an earlier release does not know."""
    places = path.with_suffix(".places")
    if not places.exists():
        return f"{path.stem} row {number}"
    with places.open(encoding="utf-8", newline="\n") as lines:
        return next(islice(lines, number - 1, None)).rstrip("\n")


def flatten(segments: list[Segment]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids and labels of one example; its first token has nothing to be predicted from."""
    ids = np.fromiter(chain.from_iterable(s.ids for s in segments), dtype=np.int32)
    labels = np.repeat([s.labelled for s in segments], [len(s.ids) for s in segments])
    labels[:1] = False
    return ids, labels


def shortened(row: dict[str, Any], size: int, encode: Callable[[dict[str, Any]], list[Segment]]) -> list[Segment]:
    """A conversation without as many of its oldest exchanges as it takes for `size` tokens.

    The system message, the tools and the last exchange stay, also where they alone are longer.
    """
    messages = up_to_answer(row["messages"])
    system = messages[:1] if messages[0]["role"] == "system" else []
    asks = [place for place, message in enumerate(messages) if message["role"] == "user"] or [len(system)]

    def kept(place: int) -> list[Segment]:
        return encode({**row, "messages": [*system, *messages[place:]]})

    def fits(place: int) -> bool:
        return sum(len(segment.ids) for segment in kept(place)) <= size

    return kept(asks[min(bisect_left(asks, True, key=fits), len(asks) - 1)])


def question_in(segments: list[Segment], kind: RowKind, begin: int) -> tuple[int, int]:
    """Where the tokens begin and end of which the left ones are cut off first, behind the `begin` that a row keeps."""
    if kind == "messages":
        asked = max((place for place, segment in enumerate(segments) if segment.asked), default=0)
        begin = sum(len(segment.ids) for segment in segments[:asked])
        return begin, begin + (len(segments[asked].ids) if segments[asked].asked else 0)
    return begin, 0 if kind == "text" else len(segments[0].ids)


def truncate(ids: NDArray[np.int32], labels: NDArray[np.bool_], size: int, *, begin: int, prompt: int
        ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Shorten to `size` tokens: those from `begin` to `prompt` on their left, then the end.

    A completion cut on the right ends without the end token, so the model does not learn to stop there.
    """
    excess = max(0, len(ids) - size)
    left = min(excess, max(0, prompt - max(1, begin)))
    keep = np.concatenate([np.arange(begin), np.arange(begin + left, len(ids))])[:size]
    return ids[keep], labels[keep]


def divided(labels: NDArray[np.bool_], size: int) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """(start, end, labels) of pieces of at most `size` tokens, in which every label is learned exactly once.

    An answer that fits into a piece is not divided, and stands behind as much of its question as fits; whole answers
    behind it come along. Before a longer one stands half a piece of its question, and its further pieces go on from the
    last token of the one before, which is read again, not learned again. What no piece has is left out.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], labels, [False]]).astype(np.int8)))
    runs: list[tuple[int, int]] = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    number, asked = 0, 0
    while number < len(runs):
        first, end = runs[number]
        start = max(asked, first - size // 2) if end - first >= size else max(asked, end - size)
        if end - start > size:
            end = start + size
            runs[number] = (end, runs[number][1])
            asked = end - 1
        else:
            while number < len(runs) and runs[number][1] - start <= size:
                end = runs[number][1]
                number += 1
            asked = end
        learned = labels[start:end].copy()
        learned[: first - start] = False
        yield start, end, learned


def covered(spans: list[tuple[int, int, NDArray[np.bool_]]]) -> int:
    """How many tokens stand in at least one of the pieces, which ascend."""
    found, at = 0, 0
    for start, end, _ in spans:
        found += max(0, end - max(at, start))
        at = max(at, end)
    return found


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, BATCH_BYTES))):
        size -= len(chunk)
        yield chunk
