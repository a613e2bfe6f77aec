"""One greedy answer through the real engine, before anyone is switched to a version."""

from __future__ import annotations

import queue

from deployments.predictor.engine import Done, Row
from deployments.predictor.loading import Loaded
from deployments.predictor.prompts import encode
from deployments.predictor.stream import TextStream
from infra.errors import Transient, UserError, shown
from tasks.distributed.decode import Sampling

SMOKE_TOKENS = 32
SMOKE_TIMEOUT_S = 300


def smoke_answer(loaded: Loaded, prompt: str) -> str:
    """The version's answer. Raises UserError if it is empty, Broken if the numbers are not finite."""
    ids, room = encode(loaded, prompt, "", None).result(SMOKE_TIMEOUT_S)
    events: queue.SimpleQueue[str | Done] = queue.SimpleQueue()
    row = Row(
        ids=ids, sampling=Sampling(max_new_tokens=min(SMOKE_TOKENS, room)), stop_ids=loaded.stop_ids,
        adapter=loaded.adapter, text=TextStream(loaded.decoder.decode), deliver=events.put)
    loaded.engine.submit(row)
    pieces: list[str] = []
    try:
        while isinstance(event := events.get(timeout=SMOKE_TIMEOUT_S), str):
            pieces.append(event)
    except queue.Empty:
        row.cancelled = True
        raise Transient(f"no answer to the smoke prompt within {SMOKE_TIMEOUT_S} s", where="predictor",
                        fix="Try again when it is less busy.") from None
    if event.error:
        raise event.error
    text = "".join(pieces)
    if not text.strip():
        raise UserError(f"the smoke prompt {shown(prompt)} got an empty answer",
                        where=f"version {loaded.id[:12]}", fix="Train longer, or choose another smoke prompt.")
    return text
