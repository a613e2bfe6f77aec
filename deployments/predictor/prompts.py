"""From what a client sends to the token ids a version is asked. Leaves nothing on disk.

A template can name the prompt as often as it likes, so what a request becomes is measured before it is made.
"""

from __future__ import annotations

import re
from array import array
from concurrent.futures import Future
from functools import partial

from deployments.predictor.loading import Loaded
from infra.errors import UserError
from tasks.distributed.codec import Codec

PLACEHOLDERS = re.compile(r"\{(prompt|system_prompt)\}")
RENDERED_BYTES, TOKEN_BYTES = 2 << 20, 16
"""The longest rendered prompt: whatever a body of 1 MiB holds once, or so much for each token of the context. Text of
natural languages has 3 to 5 bytes a token."""
BEGINNING_CHARACTERS, BEGINNING_TOKENS = 64, 4
"""For each token of the context. A beginning of so many characters that has so many tokens decides for the whole, which
could only be short enough if what follows merged these tokens to a quarter."""


def render(template: str, prompt: str, system_prompt: str) -> str:
    """Fill a template in one pass: braces in what a user wrote, and all others, stay as they are."""
    values = {"prompt": prompt, "system_prompt": system_prompt}
    return PLACEHOLDERS.sub(lambda match: values[match[1]], template)


def rendered_bytes(template: str, prompt: str, system_prompt: str) -> int:
    """How long the rendered prompt would be in UTF-8."""
    size = len(template.encode())
    for place, value in (("{prompt}", prompt), ("{system_prompt}", system_prompt)):
        size += template.count(place) * (len(value.encode()) - len(place))
    return size


def encode(loaded: Loaded, prompt: str, system_prompt: str, template: str | None) -> Future[tuple[array[int], int]]:
    """Token ids of a prompt, and how many tokens the context leaves for the answer; made on the tokenizer's thread.

    A version trained on messages is asked through its chat template, as in training, unless the
    client brings a `template`. Raises UserError at once for a prompt that is much too long.
    """
    chat = loaded.card.kind == "messages" and template is None
    template = "{system_prompt}{prompt}" if chat else template or loaded.card.prompt_template
    limit = loaded.card.context_tokens
    size, most = rendered_bytes(template, prompt, system_prompt), max(RENDERED_BYTES, TOKEN_BYTES * limit)
    if size > most:
        raise UserError(f"the prompt is {size} bytes long, its template included", where="input.prompt",
                        allowed=f"at most {most} bytes (the model's context is {limit} tokens)", fix="Shorten it.")
    return loaded.encoder.submit(size, partial(_ids, template, prompt, system_prompt, chat, limit))


def _ids(
    template: str, prompt: str, system_prompt: str, chat: bool, limit: int, codec: Codec,
) -> tuple[array[int], int]:
    text = render(template, prompt, system_prompt)
    beginning = BEGINNING_CHARACTERS * limit
    if len(text) > beginning and len(codec.prompt(text[:beginning])) > BEGINNING_TOKENS * limit:
        raise _too_long(f"more than {BEGINNING_TOKENS * limit}", limit)
    ids = codec.turn(prompt, system_prompt) if chat else codec.prompt(text)
    if not ids:
        raise UserError("input.prompt is empty", fix="Write something into the prompt.")
    if len(ids) >= limit:
        raise _too_long(str(len(ids)), limit)
    return array("q", ids), limit - len(ids)


def _too_long(tokens: str, limit: int) -> UserError:
    return UserError(f"the prompt is {tokens} tokens long, its template included", where="input.prompt",
                     allowed=f"at most {limit - 1} tokens (the model's context is {limit})", fix="Shorten it.")
