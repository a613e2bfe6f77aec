"""From token ids to the text that may be shown, piece by piece. Pure; leaves nothing on disk.

In:   token ids as they come, stop sequences     Out: text, never to be taken back
Held back: characters whose bytes are not all there yet, and the longest end of the text that
could still grow into a stop sequence. A stop sequence and what follows it are never shown.
The pieces do not depend on how the text was cut into tokens, only their borders do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
HELD_TOKENS = 16
"""A character has at most 4 bytes; text that is still broken after this many tokens stays so."""


class TextStream:
    """The text of one answer."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._text, self._filter = Detokenizer(decode), StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence was found."""
        return self._filter.stopped

    def push(self, token: int) -> str:
        """Text that became certain with this token."""
        return self._filter.push(self._text.push(token))

    def finish(self) -> str:
        """Everything still held back, after the last token."""
        return self._filter.push(self._text.finish()) + self._filter.finish()


class Detokenizer:
    """Token ids to whole characters.

    Only a window of ids is decoded: those of the piece before, which says whether a space
    belongs in front, and the new ones.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """Text that became complete with this token."""
        self._new.append(token)
        text = self._fresh()
        if not text or (text.endswith(REPLACEMENT) and len(self._new) < HELD_TOKENS):
            return ""
        self._before, self._new = self._new, []
        return text

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        text = self._fresh() if self._new else ""
        self._new = []
        return text

    def _fresh(self) -> str:
        """Text of the new ids."""
        before, both = self._decode(self._before), self._decode(self._before + self._new)
        # Invalid bytes can turn the bytes in front of them into U+FFFD; those were shown already.
        return both[len(before):] if both.startswith(before) else self._decode(self._new)


class StopFilter:
    """Cuts text at the stop sequence that is complete first; of those that end together, at the longest.

    Reads each character once (Knuth, Morris, Pratt 1977): the time does not depend on how long the sequences are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in dict.fromkeys(stops) if stop]
        self._matched = [0] * len(self._stops)
        """How many characters of each sequence the text ends with."""
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that cannot be part of a stop sequence any more."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        before = len(self._held)
        text = self._held + text
        for at in range(before, len(text)):
            found = self._read(text[at])
            if found:
                self.stopped, self._held = True, ""
                return text[: at + 1 - found]
        cut = len(text) - max(self._matched)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """The end that did not become a stop sequence."""
        text, self._held = self._held, ""
        return text

    def _read(self, letter: str) -> int:
        """Take one character; the length of the longest stop sequence that ends with it, or 0."""
        found = 0
        for i, (stop, borders) in enumerate(self._stops):
            matched = self._matched[i]
            while matched and stop[matched] != letter:
                matched = borders[matched - 1]
            matched += stop[matched] == letter
            self._matched[i] = matched
            if matched == len(stop):
                found = max(found, matched)
        return found


def _borders(stop: str) -> list[int]:
    """For each beginning of a sequence: how long its longest proper end is that is a beginning too."""
    borders = [0]
    for letter in stop[1:]:
        matched = borders[-1]
        while matched and stop[matched] != letter:
            matched = borders[matched - 1]
        borders.append(matched + (stop[matched] == letter))
    return borders
