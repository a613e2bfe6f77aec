"""Talk to a deployed model: what `anneal predict --chat` does.

In:   the model, sampling options, and messages from the command line and stdin, one a line
Out:  the answers on stdout as they come; with --json the conversation, when it has ended
Each message is sent with all that was said before; the predictor shows them by the template of the training. Ends with
the input (Ctrl-D).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from deployments.cli.predict import TIMEOUT, model_of, refused, translate_errors, write
from infra.errors import Broken, Transient, UserError
from infra.settings import Settings

NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
         "seed": "seed"}
"""Options of the command line, and what OpenAI's dialect calls them."""
ALONE = ("prompt_template", "tools")
"""Options of a single prompt."""
PROMPT = "> "


def talk(settings: Settings, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The conversation; its answers are printed meanwhile, but with --json.

    Raises:
        UserError: no such model, a wrong option or message, a missing key, or no predictor at the address.
        Transient: the predictor is starting or overloaded, or an answer broke off.
        Broken: it failed.
    """
    for name in ALONE:
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} and --chat contradict each other", fix=f"Leave {flag} out.")
    given = {theirs: value for ours, theirs in NAMES.items() if (value := getattr(options, ours)) is not None}
    if options.stop_sequences:
        given["stop"] = [stop for stop in options.stop_sequences.split(",") if stop]
    body = {**given, "model": next(iter(model_of(settings, options.target).values())), "stream": True}
    url = f"{settings.predictor.rstrip('/')}/v1/chat/completions"
    messages = [{"role": "system", "content": options.system_prompt}] if options.system_prompt else []
    show: Callable[[str], None] = (lambda text: None) if options.json else write
    with httpx.Client(headers=settings.predictor_headers, timeout=TIMEOUT) as client:
        for said in _said(options):
            messages.append({"role": "user", "content": said})
            answer = _answer(client, url, {**body, "messages": messages}, show)
            messages.append({"role": "assistant", "content": answer})
            show("\n")
    return {"messages": messages}, ""


def _said(options: argparse.Namespace) -> Iterator[str]:
    """What the user says: the command line's prompt, then lines of stdin."""
    if options.prompt not in (None, "-"):
        yield options.prompt
    while True:
        if sys.stdin.isatty() and not options.json:
            write(PROMPT)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _answer(client: httpx.Client, url: str, body: dict[str, Any], show: Callable[[str], None]) -> str:
    pieces: list[str] = []
    with translate_errors(url), client.stream("POST", url, json=body) as response:
        if response.is_error:
            raise refused(response)
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return "".join(pieces)
            if data == line:
                continue
            event = json.loads(data)
            if "error" in event:
                raise Broken(str(event["error"]["message"]), where=url)
            text = event["choices"][0]["delta"].get("content") or ""
            pieces.append(text)
            show(text)
    raise Transient("the answer broke off", where=url, fix="Ask again.")
