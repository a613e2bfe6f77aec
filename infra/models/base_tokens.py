"""The texts of a base's special tokens, from its tokenizer's JSON files alone: the flow loads no tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.models.model_folder import SPECIAL_TOKENS, TOKENIZER_CONFIG, check_objects


def special_tokens_of(base: Path) -> re.Pattern[str] | None:
    """Finds the special tokens that a template spells in a text, the longest first; None where there are none. They are
    those that transformers leaves out of a decoded answer. Raises BaseModelError."""
    texts = {text for text in _texts(check_objects(base, str(base))) if text}
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def _texts(objects: dict[str, dict[str, Any]]) -> Iterator[str]:
    config = objects.get(TOKENIZER_CONFIG, {})
    decoder = config.get("added_tokens_decoder")
    for token in (*_values(objects.get("tokenizer.json", {}).get("added_tokens")), *_values(decoder)):
        if isinstance(token, dict) and token.get("special") is True and isinstance(token.get("content"), str):
            yield token["content"]
    for named in (config, objects.get(SPECIAL_TOKENS, {})):
        for name, value in named.items():
            several = name.endswith("special_tokens")
            for one in [*_values(value)] if several else [value] if name.endswith("_token") else []:
                text = one.get("content") if isinstance(one, dict) else one
                if isinstance(text, str):
                    yield text


def _values(value: Any) -> Iterator[Any]:
    """Of a list or an object."""
    yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
