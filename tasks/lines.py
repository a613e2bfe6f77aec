"""The numbered lines of a data file, each within bounded memory.

In:   data.jsonl     Out: (number, bytes) of every line that is not blank
Lines end at line feeds only: `splitlines` and text files also split at U+2028 and at bare carriage returns, which
may stand inside of strings. A line that is too long comes cut to one byte more than is allowed; the rest is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

LINE_BYTES = 1 << 24
"""Longest line, without its line feed."""
BOM = b"\xef\xbb\xbf"
BLANK_LINES, MARKED = "blank lines, left out", "a byte-order mark at the beginning, left out"


def is_cut(line: bytes) -> bool:
    """Whether a line of `numbered` is only the beginning of one that is too long."""
    return len(line) > LINE_BYTES and not line.endswith(b"\n")


def numbered(path: Path, note: Callable[[str, int], None] | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank. `note` is told of what is left out, and of its line."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            if is_cut(line):
                while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            if number == 1 and line.startswith(BOM):
                line = line.removeprefix(BOM)
                if note:
                    note(MARKED, number)
            if line.strip() or is_cut(line):
                yield number, line
            elif note:
                note(BLANK_LINES, number)
