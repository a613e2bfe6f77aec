"""Which token ids end an answer: the one list that evaluation, the predictor and exports share.

They are the tokenizer's end token, those that the base's own generation_config.json names, and whatever the chat
template itself writes after an answer, which is the last thing that a conversation teaches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import AnnealError
from infra.models.model_folder import GENERATION, read_object

if TYPE_CHECKING:
    from tasks.distributed.codec import Codec

NAMES = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Ends of turns that bases without a template have in their vocabulary."""
SAMPLE = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
"""Two exchanges: some templates end an answer by the beginning of what follows."""


def stop_ids(codec: Codec, base: Path) -> frozenset[int]:
    """The codec's, and those of the base's generation_config.json."""
    return codec.stop_ids | set(_numbers(_generation(base).get("eos_token_id")))


def ends_of_template(codec: Codec) -> frozenset[int]:
    """The last id of what is learned of an answer; nothing where the template cannot show the sample."""
    with suppress(AnnealError):
        segments = codec.row("messages", {"messages": SAMPLE}, "", train_on_prompt=False)
        return frozenset(segment.ids[-1] for segment in segments if segment.labelled)
    return frozenset()


def write_stops(folder: Path, stops: frozenset[int]) -> None:
    """Let a model's generation_config.json name all of them, those that it named first."""
    values = _generation(folder)
    named = list(dict.fromkeys([*_numbers(values.get("eos_token_id")), *sorted(stops)]))
    values["eos_token_id"] = named if len(named) > 1 else named[0]
    (folder / GENERATION).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _generation(folder: Path) -> dict[str, Any]:
    return read_object(folder / GENERATION, "base model") if (folder / GENERATION).exists() else {}


def _numbers(value: Any) -> Iterable[int]:
    return [item for item in (value if isinstance(value, list) else [value]) if type(item) is int and item >= 0]
