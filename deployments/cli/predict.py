"""Ask a deployed model over HTTP: what `anneal predict` does.

In:   owner/name[:version] or a version id, a prompt, sampling options     Out: the prediction object and its text
With `stream` the text is written to stdout as it comes (SSE); an answer that breaks off is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from deployments.cli.options import INPUTS
from infra.errors import Broken, Transient, UserError, sentence_in
from infra.models.version_names import read_name
from infra.settings import Settings

TIMEOUT = httpx.Timeout(600, connect=5)


def ask(settings: Settings, options: argparse.Namespace, stream: bool) -> tuple[dict[str, Any], str]:
    """The prediction object and the text to print (empty when it was streamed).

    Raises:
        UserError: no such model, a wrong option, a missing key, or no predictor at the address.
        Transient: the predictor is starting or overloaded, or MLflow, which knows versions' ids, does not answer.
        Broken: it failed.
    """
    headers = {"Accept": "text/event-stream" if stream else "application/json", **settings.predictor_headers}
    body = {**model_of(settings, options.target), "input": _input(options)}
    url = f"{settings.predictor.rstrip('/')}/predictions"
    with translate_errors(url), httpx.stream("POST", url, json=body, headers=headers, timeout=TIMEOUT) as response:
        if response.is_error:
            raise refused(response)
        prediction = _last(_events(response), write) if stream else _read(response)
    if prediction.get("error"):
        raise Broken(str(prediction["error"]), where=url)
    return prediction, "" if stream else "".join(prediction["output"] or [])


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """What httpx raises when a predictor is not there, or goes away, as a sentence."""
    try:
        yield
    except httpx.ConnectError as error:
        raise UserError(
            f"the predictor does not answer ({error})", where=url,
            fix="Start it with `anneal up`, or correct ANNEAL_PREDICTOR_URL.") from error
    except httpx.TransportError as error:
        raise Transient(f"the answer broke off ({type(error).__name__})", where=url, fix="Ask again.") from error


def model_of(settings: Settings, target: str) -> dict[str, str]:
    """A name is asked of the predictor as it is; a version by its id, which MLflow tells where it is not the target."""
    name = read_name(target)
    if not name.destination:
        return {"version": target}
    if not name.which:
        return {"model": target}
    from infra.models.registry import Registry

    return {"version": Registry(settings).named(target).id}


def _input(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name, value in vars(options).items() if name in INPUTS and value is not None}
    prompt = sys.stdin.read() if options.prompt in (None, "-") else options.prompt
    return {**given, "prompt": prompt}


def _read(response: httpx.Response) -> dict[str, Any]:
    prediction: dict[str, Any] = json.loads(response.read())
    return prediction


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event; the predictor's data is one line of JSON."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def _last(events: Iterator[tuple[str, dict[str, Any]]], write: Callable[[str], None]) -> dict[str, Any]:
    """Write the pieces as they come; the last event carries the whole prediction."""
    for name, data in events:
        if name == "output":
            write(data["chunk"])
        elif name in ("completed", "error"):  # the latter from a predictor of an earlier release
            return data
    raise Transient("the answer broke off", where="predictor", fix="Ask again.")


def write(text: str) -> None:
    """Show a piece at once."""
    print(text, end="", flush=True)


def refused(response: httpx.Response) -> UserError | Transient | Broken:
    """The error that a refusal of the predictor stands for, in either dialect."""
    sentence = sentence_in(response.read(), f"HTTP {response.status_code}")
    if response.status_code in (401, 403):
        return UserError(sentence, fix="Set ANNEAL_API_KEY to the predictor's key.")
    if response.status_code in (429, 503):
        return Transient(sentence)
    return UserError(sentence) if response.status_code < 500 else Broken(sentence)
