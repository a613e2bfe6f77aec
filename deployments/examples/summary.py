"""Summaries: the demo's conversations and what they come to. Rows {"prompt", "completion"}."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from deployments.examples.dialogues import PROMPT, pick, play
from deployments.examples.names import Cast
from deployments.examples.scenes import SCENES


def rows(rng: Random, cast: Cast, held_out: bool) -> Iterator[dict[str, Any]]:
    """The plots are the same in both splits."""
    while True:
        conversation = play(rng, cast, pick(rng, SCENES))
        yield {"prompt": PROMPT.format(dialogue=conversation.dialogue()), "completion": f" {conversation.summary}"}
