"""Rendered conversations as token ids: special tokens only where the chat template writes them.

In:   text with GUARD, STOP and CUT (tasks/distributed/chat_marks.py)     Out: (id, first character) of each token
Text without them is read in one go, exactly as the tokenizer reads what `apply_chat_template` renders. Where a message
spells a special token, what stands between the template's own ones is read piece by piece, as plain text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from infra.errors import Broken
from tasks.distributed.chat_marks import CUT, GUARD, STOP

if TYPE_CHECKING:
    from tasks.distributed.codec import Codec

Token = tuple[int, int]
"""(id, place of its first character)"""


def pattern_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the texts of special tokens, the longest first; None: there are none."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = sorted({text for text in added | set(tokenizer.all_special_tokens) if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


class ChatReader:
    """The tokenizer of a codec, reading rendered conversations."""

    def __init__(self, codec: Codec, special: re.Pattern[str] | None) -> None:
        self._codec, self._special = codec, special
        self._marks = re.compile("|".join([*([special.pattern] if special else []), STOP, CUT]))
        self._strips = {str(token): (token.lstrip, token.rstrip)
                        for token in codec.tokenizer.added_tokens_decoder.values() if token.special}
        self._afresh: bool | None = None

    def tokens(self, text: str, bounds: list[int] | None = None, *, first: bool = True) -> list[Token]:
        """All tokens. `first`: the text begins the conversation. `bounds` are places at which a tokenizer that does not
        say where its tokens stand may cut. Raises Broken if a special token comes out that the template did not write.
        """
        if self._codec.tokenizer.is_fast and first and not any(mark in text for mark in (GUARD, STOP, CUT)):
            backend = self._codec.tokenizer.backend_tokenizer
            if backend.encode_special_tokens:
                backend.encode_special_tokens = False
            found = backend.encode(text, add_special_tokens=False)
            read = list(zip(found.ids, [start for start, _ in found.offsets], strict=True))
        else:
            read = list(self._by_pieces(text, bounds or [], first))
        wanted = sum(match[0] != CUT and self._id_of(match[0]) in self._codec.never
                     for match in self._marks.finditer(text))
        if sum(index in self._codec.never for index, _ in read) != wanted:
            raise Broken("the base model's tokenizer makes other special tokens than its chat template writes",
                         fix="Report the tokenizer's class.")
        return read

    def _by_pieces(self, text: str, bounds: list[int], first: bool) -> list[Token]:
        read, at, strip = list[Token](), 0, False
        for match in [*self._marks.finditer(text), None]:
            end = match.start() if match else len(text)
            lstrip, rstrip = self._strips.get(match[0], (False, False)) if match else (False, False)
            while strip and at < end and text[at].isspace():
                at += 1
            kept = len(text[at:end].rstrip()) + at if lstrip else end
            if at < kept:
                read += self._plain(text[at:kept], at, bounds, first and not read)
            if match:
                read += [(self._id_of(match[0]), match.start())] if match[0] != CUT else []
                at, strip = match.end(), rstrip
        return read

    def _plain(self, piece: str, place: int, bounds: list[int], first: bool) -> list[Token]:
        """Text of the template and of messages, without special tokens; it begins at `place`."""
        if not self._codec.tokenizer.is_fast:
            inner = [0, *sorted({at - place for at in bounds if 0 < at - place < len(piece)}), len(piece)]
            parts = [(piece[a:b].replace(GUARD, ""), place + a) for a, b in pairwise(inner)]
            return [(index, at) for part, at in parts
                    for index in (self._codec.prompt(part)[len(self._codec.bos):] if first and at == place
                                  else self._codec.continuation(part))]
        places = [at for at, letter in enumerate(piece, start=place) if letter != GUARD]
        plain = piece.replace(GUARD, "")
        backend = self._codec.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        for anchor in ("",) if first or self._reads_afresh() else ("\n", ":", "a", ""):
            begin = backend.encode(anchor, add_special_tokens=False).ids if anchor else []
            found = backend.encode(anchor + plain, add_special_tokens=False)
            if found.ids[: len(begin)] == begin:
                break
        starts = [places[min(max(0, start - len(anchor)), len(places) - 1)] for start, _ in found.offsets]
        return list(zip(found.ids, starts, strict=True))[len(begin):]

    def _reads_afresh(self) -> bool:
        """Whether the tokenizer reads what follows a special token as it reads the beginning of a text."""
        if self._afresh is None:
            tokenizer = self._codec.tokenizer
            backend = tokenizer.backend_tokenizer
            backend.encode_special_tokens = False
            behind = backend.encode(f"{tokenizer.eos_token}a", add_special_tokens=False).ids[1:]
            self._afresh = behind == backend.encode("a", add_special_tokens=False).ids
            backend.encode_special_tokens = True
        return self._afresh

    def _id_of(self, text: str) -> int:
        if text == STOP:
            return self._codec.eos
        return int(self._codec.tokenizer.convert_tokens_to_ids(text))
