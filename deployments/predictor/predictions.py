"""One prediction: from a checked request to the object that Replicate's clients know.

In:   a PredictionRequest     Out: text chunks as they come, then the finished object
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from deployments.predictor.answers import Answers, Asked
from deployments.predictor.lanes import Lane
from deployments.predictor.loading import Loaded
from deployments.predictor.prompts import Encoding, encode
from deployments.predictor.schemas import Input, PredictionRequest
from deployments.predictor.versions import ServedVersions

STATUS = {"error": "failed", "cancelled": "canceled"}
"""Replicate's word for how an answer ended; everything else succeeded."""


class Prediction(Answers):
    """One answer, told as Replicate does."""

    def __init__(self, shelf: ServedVersions, request: PredictionRequest, identity: str | None) -> None:
        """As of Answers; `identity`: the client's own id for it."""
        given = request.input
        super().__init__(shelf, Asked(
            version=request.version, model=request.model, prompts=partial(_prompts, given),
            max_new_tokens=given.max_new_tokens, temperature=given.temperature, top_p=given.top_p, top_k=given.top_k,
            stops=tuple(given.stops), seed=given.seed))
        self.id = identity or base64.b32encode(secrets.token_bytes(16)).decode().lower().rstrip("=")
        self.request, self._created = request, datetime.now(UTC)
        self.output: list[str] = []
        named = request.model if request.model and ":" not in request.model else None
        self.model = named or shelf.model_of(self.loaded.id)
        self._template = given.prompt_template or self.loaded.card.prompt_template

    @classmethod
    async def of(
        cls, shelf: ServedVersions, request: PredictionRequest, lane: Lane, identity: str | None = None,
    ) -> Prediction:
        """A prediction whose row is in its engine's queue. Raises what `Answers.begin` does."""
        return await cls.begin(lane, partial(cls, shelf, request, identity))

    async def chunks(self) -> AsyncIterator[str]:
        """Text as it comes; ends when the answer does."""
        async for _, event in self.texts():
            if isinstance(event, str):
                self.output.append(event)
                yield event

    def view(self) -> dict[str, Any]:
        """The prediction object, as far as it has got."""
        row, done = self.rows[0], self.done[0]
        error = str(done.error) if done and done.error else None
        return {
            "id": self.id, "model": self.model, "version": self.loaded.id,
            "status": STATUS.get(done.reason, "succeeded") if done else "processing",
            "input": self.request.input.model_dump(exclude_unset=True),
            "output": list(self.output) if done and not error else None,
            "error": error, "logs": "".join(f"{line}\n" for line in self._logs()),
            "metrics": self._metrics() if done else {},
            "created_at": self._at(self.received), "started_at": self._at(row.started) if row.started else None,
            "completed_at": self._at(row.ended) if done else None,
        }

    def _logs(self) -> list[str]:
        given, row, done = self.request.input, self.rows[0], self.done[0]
        got = row.sampling.max_new_tokens
        lines = [f"seed: {self.seed}"]
        if got < given.max_new_tokens:
            lines.append(f"max_new_tokens: {got} instead of {given.max_new_tokens}; the prompt has "
                         f"{len(row.ids)} tokens and the context {self.loaded.card.context_tokens}")
        if given.system_prompt and "{system_prompt}" not in self._template:
            lines.append("system_prompt: not used; the prompt template has no {system_prompt}")
        return [*lines, f"finished: {done.reason}"] if done else lines

    def _metrics(self) -> dict[str, float | int | None]:
        row = self.rows[0]
        seconds = row.ended - row.started if row.started else 0.0
        return {
            "input_token_count": len(row.ids), "output_token_count": row.tokens, "predict_time": round(seconds, 4),
            "time_to_first_token": round(row.first - self.received, 4) if row.first else None,
            "tokens_per_second": round(row.tokens / seconds, 2) if seconds else None}

    def _at(self, monotonic: float) -> str:
        moment = self._created + timedelta(seconds=monotonic - self.received)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _prompts(given: Input, loaded: Loaded) -> list[Encoding]:
    return [encode(loaded, given.prompt, given.system_prompt, given.prompt_template, given.tools)]
