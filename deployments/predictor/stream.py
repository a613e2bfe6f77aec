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
    """Cuts text at the stop sequence that is complete first."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that cannot be part of a stop sequence any more."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        self.stopped = bool(ends)
        cut = min(ends)[1] if ends else len(text) - self._ambiguous(text)
        self._held = "" if ends else text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """The end that did not become a stop sequence."""
        text, self._held = self._held, ""
        return text

    def _ambiguous(self, text: str) -> int:
        """Length of the longest end of `text` that a stop sequence begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
