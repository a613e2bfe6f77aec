"""Objects and chunks of OpenAI's completions, made of answers as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from deployments.predictor.answers import Answers
from deployments.predictor.engine import Done

FINISHED = {"end": "stop", "stop": "stop", "length": "length"}
FINGERPRINT_DIGITS = 12


@dataclass(slots=True)
class View:
    """One request's answers as OpenAI's clients read them."""

    answers: Answers
    is_chat: bool
    model: str
    """The name that was asked for."""
    id: str
    created: int
    texts: list[list[str]] = field(init=False)
    """Pieces of each choice; not kept for a stream."""

    def __post_init__(self) -> None:
        self.texts = [[] for _ in self.answers.rows]

    def whole(self) -> dict[str, Any]:
        """The finished object."""
        choices = []
        for index, pieces in enumerate(self.texts):
            text = "".join(pieces)
            said: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat
                else {"text": text})
            choices.append(self._choice(index, said, self.answers.done[index]))
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    def chunk(self, index: int, text: str, *, begins: bool = False, done: Done | None = None, counts: bool) -> str:
        """One event of a stream, as JSON. `counts`: the stream ends with a chunk of usage."""
        delta = {"role": "assistant", "content": ""} if begins else {"content": text} if text else {}
        said: dict[str, Any] = {"delta": delta} if self.is_chat else {"text": text}
        return self._chunk([self._choice(index, said, done)], {"usage": None} if counts else {})

    def usage_chunk(self) -> str:
        """The last event of a stream that counts."""
        return self._chunk([], {"usage": self._usage()})

    def _chunk(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return json.dumps({**self._head(kind), "choices": choices, **more}, ensure_ascii=False)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": f"fp_{self.answers.loaded.id[:FINGERPRINT_DIGITS]}"}

    def _choice(self, index: int, said: dict[str, Any], done: Done | None) -> dict[str, Any]:
        return {"index": index, **said, "logprobs": None, "finish_reason": FINISHED[done.reason] if done else None}

    def _usage(self) -> dict[str, int]:
        rows = self.answers.rows
        asked = sum(len(row.ids) for row in rows[:: self.answers.asked.choices])
        written = sum(row.tokens for row in rows)
        return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
