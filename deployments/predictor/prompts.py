"""From what a client sends to the token ids a version is asked. Leaves nothing on disk.

A template can name the prompt as often as it likes, so what a request becomes is measured before it is made.
"""

from __future__ import annotations

import json
import re
from array import array
from concurrent.futures import Future
from typing import Any

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


Prompt = tuple["array[int]", int]
"""Token ids of a prompt, and how many tokens the context leaves for the answer."""
Encoding = Future[Prompt]


class TooLong(UserError):
    """A prompt that the context has no room for."""


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


def encode(
    loaded: Loaded, prompt: str, system_prompt: str, template: str | None, tools: list[dict[str, Any]] | None = None,
) -> Encoding:
    """What a version is asked with a prompt; made on the tokenizer's thread.

    A version trained on messages is asked through its chat template, as in training, unless the
    client brings a `template`. Raises UserError at once for a prompt that is much too long, and for tools where no
    chat template can show them.
    """
    chat = loaded.card.kind == "messages" and template is None
    if chat:
        before = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return encode_chat(loaded, [*before, {"role": "user", "content": prompt}], tools, field="input.prompt")
    if tools:
        raise UserError("the version has no chat template that could show them", where="input.tools",
                        fix="Leave them out, or train on messages with tools.")
    template = template or loaded.card.prompt_template
    _check_size(rendered_bytes(template, prompt, system_prompt), loaded, "input.prompt")
    return encode_text(loaded, render(template, prompt, system_prompt), field="input.prompt")


def encode_text(loaded: Loaded, text: str, *, field: str) -> Encoding:
    """What a version is asked with a text, as it is. `field` is what an error names."""
    size, limit = len(text.encode()), loaded.card.context_tokens
    _check_size(size, loaded, field)

    def ids(codec: Codec) -> Prompt:
        _check_beginning(codec, text, limit, field)
        return _with_room(codec.prompt(text), limit, field)

    return loaded.encoder.submit(size, ids)


def encode_chat(
    loaded: Loaded, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, *, field: str,
) -> Encoding:
    """What a version is asked with a conversation, which has the form of tasks/data/chat.py and ends before an answer.

    A version that was trained on messages is shown it by its chat template, as in training. Any other has seen single
    prompts only: one question, perhaps with a system text, is one.
    """
    if loaded.card.kind != "messages":
        *before, last = messages
        if last["role"] != "user" or [m["role"] for m in before] not in ([], ["system"]):
            raise UserError("the version was trained on single prompts, not on conversations", where=field,
                            allowed="one message of the user, perhaps behind one of the system",
                            fix="Train on rows with messages, or ask one question at a time.")
        if before and "{system_prompt}" not in loaded.card.prompt_template:
            raise UserError("the version was trained on prompts without a system text", where=field,
                            allowed="one message of the user", fix="Leave the message of the system out.")
        system = before[0]["content"] if before else ""
        return encode(loaded, last["content"], system, loaded.card.prompt_template, tools)
    size, limit = len(json.dumps([messages, tools], ensure_ascii=False).encode()), loaded.card.context_tokens
    _check_size(size, loaded, field)

    def ids(codec: Codec) -> Prompt:
        _check_beginning(codec, "\n".join(message["content"] for message in messages), limit, field)
        return _with_room(codec.chat(messages, tools), limit, field)

    return loaded.encoder.submit(size, ids)


def given_ids(loaded: Loaded, ids: list[int], *, field: str) -> Encoding:
    """The token ids that a client sends itself."""
    limit = loaded.card.context_tokens

    def checked(codec: Codec) -> Prompt:
        wrong = next((index for index in ids if not 0 <= index < codec.vocabulary), None)
        if wrong is not None:
            raise UserError(f"{wrong} is no token id", where=field, allowed=f"0 to {codec.vocabulary - 1}",
                            fix="Use the version's own tokenizer.")
        return _with_room(ids, limit, field)

    return loaded.encoder.submit(0, checked)


def _check_size(size: int, loaded: Loaded, field: str) -> None:
    limit = loaded.card.context_tokens
    most = max(RENDERED_BYTES, TOKEN_BYTES * limit)
    if size > most:
        raise TooLong(f"the prompt is {size} bytes long, its template included", where=field,
                      allowed=f"at most {most} bytes (the model's context is {limit} tokens)", fix="Shorten it.")


def _check_beginning(codec: Codec, text: str, limit: int, field: str) -> None:
    beginning = BEGINNING_CHARACTERS * limit
    if len(text) > beginning and len(codec.prompt(text[:beginning])) > BEGINNING_TOKENS * limit:
        raise _too_long(f"more than {BEGINNING_TOKENS * limit}", limit, field)


def _with_room(ids: list[int], limit: int, field: str) -> Prompt:
    if not ids:
        raise UserError(f"{field} is empty", fix="Write something into the prompt.")
    if len(ids) >= limit:
        raise _too_long(str(len(ids)), limit, field)
    return array("q", ids), limit - len(ids)


def _too_long(tokens: str, limit: int, field: str) -> TooLong:
    return TooLong(f"the prompt is {tokens} tokens long, its template included", where=field,
                   allowed=f"at most {limit - 1} tokens (the model's context is {limit})", fix="Shorten it.")
