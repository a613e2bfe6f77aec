"""From what a client sends to the token ids a version is asked. Leaves nothing on disk."""

from __future__ import annotations

import re

from deployments.predictor.loading import Loaded
from infra.errors import UserError

PLACEHOLDERS = re.compile(r"\{(prompt|system_prompt)\}")


def render(template: str, prompt: str, system_prompt: str) -> str:
    """Fill a template in one pass: braces in what a user wrote, and all others, stay as they are."""
    values = {"prompt": prompt, "system_prompt": system_prompt}
    return PLACEHOLDERS.sub(lambda match: values[match[1]], template)


def encode(loaded: Loaded, prompt: str, system_prompt: str, template: str | None) -> tuple[list[int], int]:
    """Token ids of a prompt, and how many tokens the context leaves for the answer.

    A version trained on messages is asked through its chat template, as in training, unless the
    client brings a `template`.
    """
    with loaded.encoding:
        if loaded.card.kind == "messages" and template is None:
            ids = loaded.encoder.turn(prompt, system_prompt)
        else:
            ids = loaded.encoder.prompt(render(template or loaded.card.prompt_template, prompt, system_prompt))
    limit = loaded.card.context_tokens
    if not ids:
        raise UserError("input.prompt is empty", fix="Write something into the prompt.")
    if len(ids) >= limit:
        raise UserError(f"the prompt is {len(ids)} tokens long, its template included", where="input.prompt",
                        allowed=f"at most {limit - 1} tokens (the model's context is {limit})", fix="Shorten it.")
    return ids, limit - len(ids)
