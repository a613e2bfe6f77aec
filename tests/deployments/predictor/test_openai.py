"""OpenAI's dialect by the official client: deployments/predictor/openai_*.py, problems.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest

from deployments.predictor.engine import Row
from tasks.distributed.codec import Codec
from tasks.distributed.model import load_tokenizer
from tests.deployments.predictor.conftest import (
    PROMPT,
    STORIES,
    Predictor,
    needs_stories,
    running,
    tokens_of,
)
from tests.support.chat_templates import LLAMA2

pytestmark = needs_stories
TALK: list[Any] = [
    {"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Who is Lily?"},
    {"role": "assistant", "content": "A girl."}, {"role": "user", "content": [{"type": "text", "text": "And Tom?"}]}]


def speaks(folder: Path) -> None:
    """Make a version one that was trained on messages."""
    card = json.loads((folder / "serve.json").read_text())
    (folder / "serve.json").write_text(json.dumps({**card, "kind": "messages"}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": LLAMA2}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, versions: Path) -> Iterator[Predictor]:
    """acme/tales was trained on prompts, acme/chat on messages."""
    with running(tmp_path_factory.mktemp("served"), versions) as found:
        assert found.deploy(found.put("a"), number=2).status_code == 200
        assert found.deploy(found.put("b", speaks), "acme/chat").status_code == 200
        yield found


@pytest.fixture(scope="module")
def client(served: Predictor) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=0)


def test_models_are_listed_by_every_name_that_may_be_asked(client: openai.OpenAI, served: Predictor) -> None:
    names = [one.id for one in client.models.list()]
    assert names == ["acme/chat", "acme/chat:champion", f"acme/chat:{served.put('b', speaks)}",
                     "acme/tales", "acme/tales:champion", "acme/tales:2"]
    found = client.models.retrieve("acme/tales:2")
    assert (found.object, found.owned_by) == ("model", "acme") and found.created > 1_700_000_000
    for name in (*names, served.put("a")):
        assert client.completions.create(model=name, prompt="x", max_tokens=1).model == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme/none")


def test_a_completion_is_the_answer_that_predictions_give(client: openai.OpenAI, served: Predictor) -> None:
    found = client.completions.create(model="acme/tales", prompt=PROMPT, temperature=0)
    assert found.choices[0].text == "".join(served.answer(model="acme/tales")["output"])
    assert found.choices[0].finish_reason == "length" and found.object == "text_completion"
    usage = found.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens) == (tokens_of(PROMPT), 16)
    assert usage.total_tokens == usage.prompt_tokens + 16 and found.system_fingerprint


def test_prompts_may_be_many_or_token_ids(client: openai.OpenAI) -> None:
    ids = Codec(load_tokenizer(STORIES)).prompt(PROMPT)
    def texts(prompt: Any) -> list[str]:
        found = client.completions.create(model="acme/tales", prompt=prompt, temperature=0, n=2)
        assert [one.index for one in found.choices] == list(range(len(found.choices)))
        return [one.text for one in found.choices]

    one, other = texts(PROMPT)[0], texts("The cat")[0]
    assert texts([PROMPT, "The cat"]) == [one, one, other, other]
    assert texts(ids) == [one] * 2 and texts([ids, ids]) == [one] * 4


def test_a_conversation_streams_to_its_end_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="acme/chat", messages=TALK, temperature=0, max_tokens=12)
    chunks = list(client.chat.completions.create(
        model="acme/chat", messages=TALK, temperature=0, max_completion_tokens=12, stream=True,
        stream_options={"include_usage": True}))
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    assert pieces[0].delta.role == "assistant" and {chunk.id for chunk in chunks} == {chunks[0].id}
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    plain = list(client.chat.completions.create(model="acme/chat", messages=TALK, max_tokens=3, stream=True))
    assert all(chunk.usage is None for chunk in plain) and plain[-1].choices[0].finish_reason


def test_a_conversation_is_asked_as_it_is_trained(
    client: openai.OpenAI, served: Predictor, monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, rows = served.app.state.shelf.versions()[0].engine, list[Row]()
    submit = engine.submit

    def noted(row: Row) -> None:
        rows.append(row)
        submit(row)

    monkeypatch.setattr(engine, "submit", noted)
    answer = client.chat.completions.create(model="acme/chat", messages=TALK, max_tokens=1)
    tokenizer = load_tokenizer(STORIES)
    tokenizer.chat_template = LLAMA2
    plain = [{"role": role, "content": text} for role, text in (
        ("system", "Be kind."), ("user", "Who is Lily?"), ("assistant", "A girl."), ("user", "And Tom?"))]
    trained = Codec(tokenizer).question("messages", {"messages": [*plain, {"role": "assistant", "content": "A boy."}]},
                                        "")[0]
    assert list(rows[0].ids) == trained and answer.usage and answer.usage.prompt_tokens == len(trained)


def test_choices_differ_and_each_can_be_had_again_by_its_seed(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int, **more: Any) -> list[str]:
        found = client.completions.create(model="acme/tales", prompt=PROMPT, seed=seed, n=n, **more)
        return [one.text for one in found.choices]

    four = texts(5, 4)
    assert len(set(four)) == 4 and texts(5, 4) == four
    assert [texts(seed, 1)[0] for seed in (5, 6, 7, 8)] == four


def test_stop_ends_a_choice_and_is_not_shown(client: openai.OpenAI, served: Predictor) -> None:
    whole = "".join(served.answer(model="acme/tales")["output"])
    stop = whole[9:14]
    for given in (stop, ["@@", stop]):
        choice = client.completions.create(
            model="acme/tales", prompt=PROMPT, temperature=0, stop=cast(Any, given)).choices[0]
        assert choice.text == whole[: whole.index(stop)] and choice.finish_reason == "stop"


def test_a_version_trained_on_prompts_answers_one_question(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="acme/tales", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=16)
    text = client.completions.create(model="acme/tales", prompt=PROMPT, temperature=0).choices[0].text
    assert said.choices[0].message.content == text
    with pytest.raises(openai.BadRequestError, match="single prompts") as caught:
        client.chat.completions.create(model="acme/tales", messages=TALK[1:])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="system text"):
        client.chat.completions.create(model="acme/tales", messages=[TALK[0], TALK[1]])


@pytest.mark.parametrize(("given", "param"), [
    ({"logprobs": True}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"temprature": 1}, "temprature"),
    ({"temperature": 2.5}, "temperature"), ({"max_tokens": 0}, "max_tokens"), ({"n": 17}, "n"), ({"n": 0}, "n"),
    ({"stop": ["s"] * 17}, "stop"), ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"messages": []}, "messages"), ({"messages": TALK[:3]}, "messages"),
    ({"messages": [TALK[1], TALK[1]]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"), ({"stream_options": {"x": 1}},
                                                                          "stream_options.x")])
def test_what_is_not_done_is_refused_by_name(served: Predictor, given: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "acme/chat", "messages": TALK, **given})
    answer = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param.split(".")[0] in error["message"] or "message" in error["message"]


@pytest.mark.parametrize(("given", "param"), [
    ({"prompt": []}, "prompt"), ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [[]]}, "prompt"), ({}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"), ({"prompt": ["a"] * 64, "n": 3}, "n"), ({"prompt": [1, 100_000]}, "prompt"),
    ({"prompt": [-1]}, "prompt"), ({"prompt": ["\ud800"]}, "prompt"), ({"prompt": "a", "echo": True}, "echo"),
    ({"prompt": "a", "best_of": 2}, "best_of"), ({"prompt": "a", "logprobs": 0}, "logprobs"),
    ({"prompt": "a", "suffix": "b"}, "suffix"), ({"prompt": "a", "messages": TALK}, "messages")])
def test_a_wrong_completion_is_refused_by_name(served: Predictor, given: dict[str, Any], param: str) -> None:
    answer = served.http.post("/v1/completions", content=json.dumps({"model": "acme/tales", **given}),
                              headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_what_asks_for_nothing_or_concerns_only_openai_is_taken(client: openai.OpenAI) -> None:
    more: dict[str, Any] = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "tool_choice": "none",
                            "safety_identifier": "x", "prompt_cache_key": "y", "parallel_tool_calls": False}
    found = client.chat.completions.create(
        model="acme/chat", messages=TALK, max_tokens=1, logprobs=False, presence_penalty=0, frequency_penalty=0.0,
        logit_bias={}, tools=[], response_format={"type": "text"}, user="me", seed=None, stop=None, **more)
    assert len(found.choices) == 1


def test_a_context_that_is_full_says_so_with_its_code(client: openai.OpenAI) -> None:
    for given in ({"prompt": "word " * 600}, {"prompt": PROMPT, "max_tokens": 510}):
        with pytest.raises(openai.BadRequestError, match="tokens") as caught:
            client.completions.create(model="acme/tales", **cast(Any, given))
        assert caught.value.code == "context_length_exceeded"
    room = 512 - tokens_of(PROMPT)
    assert client.completions.create(model="acme/tales", prompt=PROMPT, max_tokens=room, stop=" ").usage


def test_an_unknown_model_is_404_and_names_it(client: openai.OpenAI) -> None:
    for name in ("gpt-4o", "acme/none", "acme/tales:9", "0" * 64):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=TALK)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(("method", "path", "body", "status"), [
    ("POST", "/v1/completions", "{", 400), ("POST", "/v1/completions", '{"prompt": "a"}', 400),
    ("GET", "/v1/none", "", 404),
    ("GET", "/v1/completions", "", 405), ("POST", "/v1/completions", '{"prompt": "' + "a" * (1 << 20) + '"}', 413)])
def test_every_error_has_the_shape_of_openai(
    served: Predictor, method: str, path: str, body: str, status: int,
) -> None:
    answer = served.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert sorted(answer.json()["error"]) == ["code", "message", "param", "type"] and answer.json()["error"]["message"]


def test_a_wrong_key_is_an_authentication_error(tmp_path: Path, versions: Path) -> None:
    with running(tmp_path, versions, api_key="secret-key") as found:
        assert openai.OpenAI(api_key="secret-key", base_url=f"{found.url}/v1").models.list().data == []
        with pytest.raises(openai.AuthenticationError, match="ANNEAL_API_KEY") as caught:
            openai.OpenAI(api_key="wrong", base_url=f"{found.url}/v1").models.list()
        assert caught.value.code == "invalid_api_key"


def test_a_row_that_fails_ends_the_stream_with_an_error(
    client: openai.OpenAI, served: Predictor, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overflow(**given: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(served.app.state.shelf.versions()[0].engine.model, "forward", overflow)
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="acme/tales", prompt=PROMPT)
    with pytest.raises(openai.APIError, match="fault"):
        list(client.completions.create(model="acme/tales", prompt=PROMPT, stream=True))
