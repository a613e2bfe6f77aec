"""tasks/data/chat.py, tasks/data/values.py: conversations as people have them are used or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.chat import conversational, messages_of, said_by, tools_of
from tasks.data.scan import judge_line
from tasks.data.schema import clean, unused_keys
from tasks.data.sources import Places
from tasks.ingest import ingest

USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "2"}
CALL = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": {"of": "plates"}}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "tool_call_id": "c1", "content": "2"}
TOOL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}


def cleaned(*messages: Any, **row: Any) -> dict[str, Any]:
    return clean({"messages": list(messages), **row}, "messages", "d line 1")


def cases(shared: Path, name: str) -> list[dict[str, Any]]:
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/cases/{name}")
    (path,) = folder.glob("*.jsonl")
    return [judge_line(line, 1, Places("d")).value for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("name", ["tool-calls", "tool-calls-null"])
def test_the_cases_with_tools_keep_tools_and_calls(shared: Path, name: str) -> None:
    for row in cases(shared, name):
        call = row["messages"][1]["tool_calls"][0]["function"]
        assert call["name"] == "count_plates" and isinstance(call["arguments"], dict)
        assert row["tools"][0]["function"]["name"] == "count_plates" and row["messages"][2]["tool_call_id"] == "call_1"


def test_the_case_with_weights_keeps_those_of_0(shared: Path) -> None:
    for row in cases(shared, "weight0"):
        assert [message.get("weight") for message in row["messages"]] == [None, 0, None, None]


def test_the_case_of_a_list_a_line_gets_the_right_command(
    shared: Path, settings: Settings, store: Store,
) -> None:
    path = shared / "cases" / "list-a-line" / "bare_list.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/cases/list-a-line")
    with pytest.raises(DataError, match=r"lists of messages.*`jq -c '\{messages: \.\}'"):
        ingest(settings, store, str(path))


def test_arguments_may_be_an_object_or_its_json() -> None:
    text = {**CALL, "function": {"name": "count", "arguments": '{"of": "plates"}'}}
    one, other = (cleaned(USER, {**ASKS, "tool_calls": [call]}, TOLD, ANSWER) for call in (CALL, text))
    assert one == other and one["messages"][1]["content"] == ""
    assert one["messages"][1]["tool_calls"][0]["function"] == CALL["function"]


def test_a_call_may_be_the_last_that_is_said() -> None:
    row = cleaned(USER, ASKS, tools=[TOOL])
    assert said_by(row["messages"][-1]) == json.dumps(CALL["function"]) and row["tools"] == [TOOL]


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    assert cleaned({"role": "user", "content": parts}, ANSWER)["messages"][0] == USER


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_are_kept_under_one_name(key: str) -> None:
    assert cleaned(USER, {**ANSWER, key: "two"})["messages"][1] == {**ANSWER, "reasoning_content": "two"}


def test_developer_is_system() -> None:
    assert cleaned({"role": "developer", "content": "x"}, USER, ANSWER)["messages"][0]["role"] == "system"


def test_a_conversational_prompt_is_not_learned() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER], "tools": [TOOL]}
    found = judge_line(json.dumps(row).encode(), 1, Places("d"))
    assert found.kind == "messages" and not found.unused and found.value["tools"] == [TOOL]
    assert [m.get("weight") for m in found.value["messages"]] == [None, 0, None, None]
    with pytest.raises(DataError, match="two lists of messages, or two strings"):
        conversational({"prompt": "x", "completion": [ANSWER]}, "d line 1")


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_may_be_written_in_three_ways(tools: Any) -> None:
    assert tools_of(tools, "d") == [TOOL]


def test_what_an_answer_of_the_service_has_beside_is_not_noted() -> None:
    row = {"messages": [USER, {**ANSWER, "refusal": None, "annotations": [], "audio": None, "function_call": None}]}
    assert unused_keys(row, "messages") == [] and clean(row, "messages", "d")["messages"] == [USER, ANSWER]


@pytest.mark.parametrize(("messages", "words"), [
    ([USER, {**ANSWER, "weight": 0}], 'every assistant message has "weight": 0'),
    ([USER, {**ANSWER, "weight": 0.5}], '"weight" is 0.5; expected 0 or 1'),
    ([{**USER, "weight": 1}, ANSWER], '"weight" of a message of user is 1'),
    ([USER, {"role": "model", "content": "2"}], 'Write the role "assistant" instead of "model".'),
    ([{"role": "human", "content": "2"}, ANSWER], 'Write the role "user" instead of "human"; sharegpt:'),
    ([USER, {"role": "gpt", "content": "2"}], 'Write the role "assistant" instead of "gpt"; sharegpt:'),
    ([USER, ASKS, {"role": "function", "name": "count", "content": "2"}, ANSWER],
     'the role "tool" with "tool_call_id"'),
    ([{"role": "User", "content": "2"}, ANSWER], 'Write the role "user" in lower case'),
    ([{"from": "human", "value": "x"}], 'Write "role" instead of "from"'),
    ([USER, {**ANSWER, "function_call": {"name": "x", "arguments": "{}"}}], '"function_call" is'),
    ([USER, {**ANSWER, "refusal": "no"}], '"refusal" is "no"'), ([USER, {**ANSWER, "train": False}], '"weight": 0'),
    ([USER, {**ASKS, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}], "is a string that is not JSON"),
    ([USER, {**ASKS, "tool_calls": [{"function": {}}]}], "message 2, call 1: it is"),
    ([USER, ASKS, {**TOLD, "tool_call_id": "c9"}, ANSWER], '"tool_call_id" is "c9", which no call before it has'),
    ([{**USER, "tool_calls": [CALL]}, ANSWER], "a message of user has tool_calls"),
    ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], 'part 1 of "content" is "image_url"'),
    ([USER, {**ANSWER, "thinking": "a", "reasoning": "b"}], "thinking and reasoning say different things"),
    ("[]", "write the list itself")])
def test_what_cannot_be_used_is_named_with_its_remedy(messages: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        messages_of(messages, "d line 7")
    assert words in str(caught.value) and str(caught.value).startswith("d line 7")


@pytest.mark.parametrize(("row", "words"), [
    ({"messages": [USER, ANSWER], "functions": [TOOL]}, '"functions" is'),
    ({"messages": [USER, ANSWER], "weight": 0.5}, '"weight" is 0.5'),
    ({"messages": [USER, ANSWER], "tools": [{}]}, "tool 1: it is"),
    ({"text": "t", "label": 0}, "--columns prompt=text,completion=label"),
    ({"text": "t", "label": "pos"}, "--columns prompt=text,completion=label"),
    ({"prompt": "p", "completion": "c", "label": False}, '"label" is false'),
    ({"prompt": "p", "completion": "c", "system": "s"}, "beginning with a system message"),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "the row has chosen and rejected"),
    ({"instruction": "i", "input": "", "output": "o"}, "put alpaca: in front"),
    ({"conversations": []}, "put sharegpt: in front"), ({"question": "q", "answer": "a"},
                                                        "--columns prompt=question,completion=answer")])
def test_a_key_that_changes_the_meaning_of_a_row_is_never_just_unused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        judge_line(json.dumps(row).encode(), 3, Places("d"))
    assert words in str(caught.value) and str(caught.value).startswith("d line 3")


def test_a_key_that_stands_twice_in_a_call_or_a_tool_is_named() -> None:
    line = json.dumps({"messages": [USER, ASKS], "tools": [TOOL]}).encode()
    for twice in (line.replace(b'"of": "plates"', b'"of": "a", "of": "b"'),
                  line.replace(b'"type": "object"', b'"type": "object", "type": "x"')):
        with pytest.raises(DataError, match="stands twice"):
            judge_line(twice, 1, Places("d"))


U, A, S, T = ({"role": role, "content": "x"} for role in ("user", "assistant", "system", "tool"))


@pytest.mark.parametrize(("messages", "words"), [
    ([], "is an empty array; expected a list"), ([U], "no assistant message"), (["x"], "message 1: it is a string"),
    ([{"role": "bot", "content": "a"}], 'message 1: "role" is "bot"'), ([{"role": "user"}], '1: "content" is missing'),
    ([{**U, "content": None}], 'message 1: "content" is null'),
    ([U, {**A, "content": " "}, U, A], "message 2: the assistant's message is empty"),
    ([A], "message 1: a message of assistant stands at the beginning; expected system or user"),
    ([U, S, A], "message 2: a message of system stands behind one of user; expected assistant. Put the system"),
    ([S, S, U, A], "message 2: a message of system stands behind one of system; expected user. Join"),
    ([U, U, A], "message 2: a message of user stands behind one of user; expected assistant. Join neighbouring"),
    ([U, A, A], "message 3: a message of assistant stands behind one of assistant; expected user or tool"),
    ([T, A], "message 1: a message of tool stands at the beginning"), ([U, A, T], "the last message is by the tool"),
    ([U, A, U], "the last message is by the user; expected the assistant's answer at the end")])
def test_bad_messages_are_named(messages: list[Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        clean({"messages": messages}, "messages", "d line 7")
    assert words in str(caught.value) and str(caught.value).startswith("d line 7")


@pytest.mark.parametrize("messages", [[U, A], [S, U, A], [U, A, U, A], [U, A, T, A], [S, U, A, T, T, A, U, A]])
def test_conversations_in_order_are_accepted(messages: list[Any]) -> None:
    assert clean({"messages": messages}, "messages", "here") == {"messages": messages}


def test_keys_that_are_not_used_are_known_in_messages_too() -> None:
    row = {"messages": [{**U, "name": "n"}, {**A, "weight": 0, "mood": "good", "refusal": None}], "id": 1}
    assert unused_keys(row, "messages") == ["id", "mood", "name"]
