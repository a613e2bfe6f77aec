"""Conversations as OpenAI, Together, Fireworks and TRL document them: judged, and written in one form.

In:   the messages and tools of a row     Out: messages with the keys of MESSAGE_KEYS, tools as {"type", "function"}
What changes the meaning of a message is used or refused, never left out in silence. Arguments of a call become an
object, parts of text one text, `developer` becomes `system`, and a message that is not learned keeps `"weight": 0`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from infra.errors import DataError, shown
from tasks.data.values import kind_name, text_of, whole_json, whole_text

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {
    "model": 'Write the role "assistant" instead of "model".',
    "gpt": 'Write the role "assistant" instead of "gpt"; sharegpt: in front of the address reads files of '
           '{"conversations": [{"from", "value"}]}.',
    "human": 'Write the role "user" instead of "human"; sharegpt: in front of the address reads files of '
             '{"conversations": [{"from", "value"}]}.',
    "bot": 'Write the role "assistant" instead of "bot".',
    "function": 'Write the role "tool" with "tool_call_id", and the call before it as "tool_calls" of the assistant.',
    "ipython": 'Write the role "tool" instead of "ipython".', "tool_response": 'Write the role "tool".',
    "observation": 'Write the role "tool" instead of "observation".'}
"""What other programs call them, and the remedy."""
MAY_FOLLOW = {
    "": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"),
    "tool": ("tool", "assistant")}
"""Which roles may stand behind which; "" is the beginning."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates and services call the assistant's thoughts; transformers gives them to a template by all its names."""
MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "weight", "reasoning_content")
REFUSED_KEYS = {
    "function_call": 'Write it as "tool_calls": [{"type": "function", "function": {"name", "arguments"}}].',
    "refusal": 'Write what the assistant says into "content".',
    "audio": "Only text can be trained on: leave the row out.",
    "images": "Only text can be trained on: leave the row out.",
    "image": "Only text can be trained on: leave the row out.",
    "videos": "Only text can be trained on: leave the row out.",
    "train": 'Write "weight": 0 for a message that is not learned.',
    "training": 'Write "weight": 0 for a message that is not learned.',
    "train_detail": "A message is learned as a whole or not at all: \"weight\" is 0 or 1.",
    "prefix": 'Write the whole answer into "content".',
    "loss": 'Write "weight": 0 for a message that is not learned.',
    "from": 'Write "role" instead of "from", and "content" instead of "value"; or put sharegpt: in front of the '
            "address.",
}
"""Keys of a message that say something we do not do, and what to do instead."""
SHAPE = 'a list such as [{"role": "user", "content": "..."}, ...]'
CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
TOOL = '{"type": "function", "function": {"name": "...", "parameters": {...}}}'

Message = dict[str, Any]


def messages_of(value: Any, where: str) -> list[Message]:
    """Messages in an order that can be learned: system first, then user and assistant in turn, the answer last."""
    cleaned = turns_of(value, where)
    if not any(m["role"] == "assistant" for m in cleaned):
        raise DataError("there is no assistant message with text", where=where, fix="Add the answer to learn.")
    if cleaned[-1]["role"] != "assistant":
        raise DataError(f"the last message is by the {cleaned[-1]['role']}", where=where,
                        allowed="the assistant's answer at the end", fix="Add the answer, or remove the last message.")
    if not any(m["role"] == "assistant" and m.get("weight", 1) for m in cleaned):
        raise DataError('every assistant message has "weight": 0', where=where,
                        fix="Leave the row out, or set the weight of what is to be learned to 1.")
    return cleaned


def turns_of(value: Any, where: str, key: str = "messages") -> list[Message]:
    """Messages that follow each other as they may. Raises DataError, naming the first that is wrong."""
    if not isinstance(value, list) or not value:
        fix = 'It is JSON in a string: write the list itself, as in jq -c \'.messages |= fromjson\'.'
        raise DataError(f'"{key}" is {"an empty array" if value == [] else kind_name(value)}', where=where,
                        allowed=SHAPE, fix=fix if isinstance(value, str) and value.lstrip()[:1] == "[" else "")
    cleaned: list[Message] = []
    called: set[str] = set()
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"it is {kind_name(message)}", where=place, allowed="an object with role and content")
        role = _role_of(message, place)
        _check_turn(cleaned[-1]["role"] if cleaned else "", role, place)
        cleaned.append(_message_of(message, role, called, place))
    return cleaned


def tools_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The tools of a row, each as TOOL; a list that was written as a string is read. Raises DataError."""
    if isinstance(value, str):
        value = _json_of(value, "tools", where) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f'"tools" is {kind_name(value)}', where=where, allowed=f"a list of {TOOL}")
    tools = []
    for number, tool in enumerate(value, start=1):
        place = f"{where}, tool {number}"
        if isinstance(tool, dict) and "function" not in tool and "name" in tool and tool.get("type") in (
                None, "function"):
            tool = {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f"it is {shown(tool)}", where=place, allowed=TOOL)
        tools.append(whole_json({"type": "function", **tool}, "tools", place))
    return tools


def conversational(row: dict[str, Any], where: str) -> dict[str, Any]:
    """TRL's {"prompt": [messages], "completion": [messages]} as messages: those of the prompt are not learned."""
    for key in ("prompt", "completion"):
        if not isinstance(row[key], list) or not row[key]:
            raise DataError(f'"{key}" is {"an empty array" if row[key] == [] else kind_name(row[key])} and the other '
                            "one a list of messages", where=where, allowed="two lists of messages, or two strings",
                            fix='Write {"messages": [...]}, or texts.')
    before = [{**m, "weight": 0} if isinstance(m, dict) and m.get("role") == "assistant" else m for m in row["prompt"]]
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {"messages": [*before, *row["completion"]], **rest}


def said_by(message: Message) -> str:
    """What a message says: its text, and a line of JSON for each call."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls] if message["content"] else calls)


def _role_of(message: Message, where: str) -> str:
    fix = REFUSED_KEYS["from"] if "from" in message else ""
    role = text_of(message, "role", where, fix=fix)
    if role == "developer":
        return "system"
    if role not in ROLES:
        alike = role.strip().casefold()
        same = f'Write the role {shown(alike)} in lower case, without spaces.' if alike in ROLES else ""
        raise DataError(f'"role" is {shown(role)}', where=where, allowed="one of " + ", ".join((*ROLES, "developer")),
                        fix=OTHER_ROLES.get(alike, same))
    return role


def _message_of(message: Message, role: str, called: set[str], where: str) -> Message:
    for key, fix in REFUSED_KEYS.items():
        if message.get(key) not in (None, [], {}, "", False) or (key in ("train", "training") and key in message):
            raise DataError(f'"{key}" is {shown(message[key])}, which has no meaning here', where=where, fix=fix)
    found: Message = {"role": role, "content": ""}
    calls = _calls_of(message, role, where)
    if not (calls and message.get("content") is None):
        found["content"] = _content_of(message, where)
    if role == "assistant" and not found["content"].strip() and not calls:
        raise DataError("the assistant's message is empty", where=where, fix="Fill it in, or remove the turn.")
    if calls:
        found["tool_calls"] = calls
        called |= {call["id"] for call in calls if "id" in call}
    if role == "tool":
        found |= _answer_of(message, called, where)
    if message.get("weight") is not None and _weight_of(message, role, where) == 0 and role == "assistant":
        found["weight"] = 0
    thoughts = [text_of(message, key, where) for key in REASONING if message.get(key)]
    if thoughts and role != "assistant":
        raise DataError(f"a message of {role} has thoughts", where=where, fix='Write them into "content".')
    if thoughts:
        if len(set(thoughts)) > 1:
            raise DataError(f"{' and '.join(k for k in REASONING if message.get(k))} say different things",
                            where=where, fix="Keep one of them.")
        found["reasoning_content"] = thoughts[0]
    return found


def _content_of(message: Message, where: str) -> str:
    """Text, or parts of text put together as templates that walk through them do: with nothing in between."""
    value = message.get("content")
    if not isinstance(value, list):
        return text_of(message, "content", where)
    texts = []
    for number, part in enumerate(value, start=1):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(whole_text(part, "content", where))
        elif kind == "text" and isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(whole_text(part["text"], "content", where))
        else:
            fix = ('Write thoughts as "reasoning_content" beside "content".' if kind in ("thinking", "reasoning")
                   else "Only text can be trained on: write a text, or leave the row out.")
            raise DataError(f'part {number} of "content" is {shown(kind or kind_name(part))}', where=where,
                            allowed='a string, or parts {"type": "text", "text": "..."}', fix=fix)
    return "".join(texts)


def _calls_of(message: Message, role: str, where: str) -> list[dict[str, Any]]:
    value = message.get("tool_calls")
    if value is None or value == []:
        return []
    if role != "assistant":
        raise DataError(f"a message of {role} has tool_calls", where=where, fix="Only the assistant calls tools.")
    if not isinstance(value, list):
        raise DataError(f'"tool_calls" is {kind_name(value)}', where=where, allowed=f"a list of {CALL}")
    return [_call_of(call, f"{where}, call {number}") for number, call in enumerate(value, start=1)]


def _call_of(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DataError(f"it is {shown(call)}", where=where, allowed=CALL)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json_of(arguments, "arguments", where) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise DataError(f'"arguments" is {kind_name(arguments)}', where=where,
                        allowed="an object, or a string with the JSON of one")
    found: dict[str, Any] = {"type": "function", "function": {
        "name": whole_text(function["name"], "name", where),
        "arguments": whole_json(arguments, "arguments", where)}}
    return {**found, "id": text_of(call, "id", where)} if call.get("id") is not None else found


def _answer_of(message: Message, called: set[str], where: str) -> Message:
    """Which call a tool's message answers."""
    found = {key: text_of(message, key, where) for key in ("tool_call_id", "name") if message.get(key) is not None}
    if called and "tool_call_id" in found and found["tool_call_id"] not in called:
        raise DataError(f'"tool_call_id" is {shown(found["tool_call_id"])}, which no call before it has', where=where,
                        allowed="one of " + ", ".join(sorted(called)[:5]), fix="Write the id of the call.")
    return found


def _weight_of(message: Message, role: str, where: str) -> int:
    value = message["weight"]
    if isinstance(value, bool) or value not in (0, 1):
        raise DataError(f'"weight" is {shown(value)}', where=where, allowed="0 or 1",
                        fix="A message is learned or not; leave rows out that are to count less.")
    if value == 1 and role != "assistant":
        raise DataError(f'"weight" of a message of {role} is 1', where=where, allowed="0",
                        fix="Only what the assistant says is learned; train_on_prompt learns all the rest too.")
    return int(value)


def _json_of(text: str, key: str, where: str, read: Callable[[str], Any] = json.loads) -> Any:
    try:
        return read(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f'"{key}" is a string that is not JSON ({shown(text)})', where=where,
                        allowed="an object, or a string with the JSON of one",
                        fix="Write it with json.dumps.") from error


def _check_turn(before: str, role: str, where: str) -> None:
    if role in MAY_FOLLOW[before]:
        return
    behind = f"behind one of {before}" if before else "at the beginning"
    fix = ("Join neighbouring messages of one role into one." if role == before
           else "Put the system message first, then user and assistant in turn.")
    raise DataError(f"a message of {role} stands {behind}", where=where, allowed=" or ".join(MAY_FOLLOW[before]),
                    fix=fix)
