"""The numbered lines of a data file, each within bounded memory.

In:   data.jsonl     Out: (number, bytes) of every line that is not blank
Lines end at line feeds only: `splitlines` and text files also split at U+2028 and at bare carriage returns, which
may stand inside of strings. Of a line that is too long only the beginning comes, which is too long too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

LINE_BYTES = 1 << 24
"""Longest line, without its line feed."""
BLOCK_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"
HELD_BYTES = LINE_BYTES + len(BOM) + 1
"""Of a line that is too long."""
BLANK_LINES, MARKED = "blank lines, left out", "a byte-order mark at the beginning, left out"


def is_cut(line: bytes) -> bool:
    """Whether a line of `numbered` is only the beginning of one that is too long."""
    return len(line) > LINE_BYTES


def numbered(
    path: Path, note: Callable[[str, int], None] | None = None, *, start: int = 0, end: int | None = None,
    begins: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without their line feed; counted from 1 at byte `start`, where a line begins.

    `note` is told of what is left out, and of its line; `begins` now and then, before a line comes, at which byte
    that line begins. Lines that begin at byte `end` or later are left alone.
    """
    with path.open("rb") as file:
        file.seek(start)
        number = 0
        for at, lines in _blocks(file):
            if begins and lines:
                begins(at)
            if end is not None:
                lines = _before(lines, end - at)
            if number == 0 and start == 0 and lines and lines[0].startswith(BOM):
                lines[0] = lines[0].removeprefix(BOM)
                if note:
                    note(MARKED, 1)
            for number, line in enumerate(lines, number + 1):  # noqa: B020  # for speed
                if (line and not line.isspace()) or len(line) > LINE_BYTES:
                    yield number, line
                elif note:
                    note(BLANK_LINES, number)
            if end is not None and at + sum(map(len, lines)) + len(lines) >= end:
                return


def _before(lines: list[bytes], size: int) -> list[bytes]:
    """Those that begin in the first `size` bytes."""
    at = 0
    for count, line in enumerate(lines):
        if at >= size:
            return lines[:count]
        at += len(line) + 1
    return lines


def _blocks(file: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Whole lines, those of a block at a time, and the byte at which the first of them begins."""
    held, at = bytearray(), file.tell()
    while block := file.read(BLOCK_BYTES):
        first, found, rest = block.partition(b"\n")
        if len(held) <= HELD_BYTES:
            held += first
        if not found:
            continue
        *lines, last = rest.split(b"\n")
        yield at, [bytes(held[:HELD_BYTES]), *lines]
        held, at = bytearray(last), file.tell() - len(last)
    if held:
        yield at, [bytes(held[:HELD_BYTES])]
