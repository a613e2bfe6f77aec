"""What probably happened to a line that is not JSON, and what to do about it.

In:   the line's text     Out: one sentence
The first guess that fits is given; the last one always does. Cheap, since a file may hold millions of such lines.
"""

from __future__ import annotations

import ast
import json
import re

GUESSED_CHARACTERS = 100_000
"""Of a line no more is looked at, and longer ones are not tried as Python."""
BEHIND_AN_OBJECT = re.compile(r"\s*+,?\s*+\{")
YAML = re.compile(r"\s*(- )?\w+:(\s|$)")
BARE_KEY = re.compile(r"\s*\{\s*\w+\s*:")
COMMENT = re.compile(r"\s*(//|/\*|#)")


def _by_jq(program: str) -> str:
    return f"jq -c '{program}' writes the rows."


PARTS = 'content: ([.parts[].text] | join(""))'
BEDROCK = "It looks like Bedrock: " + _by_jq(
    '{messages: [((.system // []) | select(length > 0) | {role: "system", content: ([.[].text] | join(""))}), '
    '(.messages[] | {role, content: ([.content[].text] | join(""))})]}')
OTHER_FORMS = {
    "conversations": "It looks like ShareGPT: put sharegpt: in front of the address.",
    "contents": "It looks like Gemini: " + _by_jq(
        '{messages: [((.systemInstruction // .system_instruction // empty) | {role: "system", ' + PARTS + '}), '
        '(.contents[] | {role: (if .role == "model" then "assistant" else "user" end), ' + PARTS + '})]}'),
    "preferred_output": "Preferences cannot be learned here, preferred answers can: " + _by_jq(
        "{messages: (.input.messages + .preferred_output)}"),
    "segments": "It looks like axolotl's input_output. Where the learned segments are the last ones, " + _by_jq(
        '{prompt: ([.segments[] | select(.label | not) | .text] | join("")), '
        'completion: ([.segments[] | select(.label) | .text] | join(""))}')}
"""What to do about files of other programs, by a key that only they have."""


def remedy(text: str, shapes: str) -> str:
    """What to do about `text`; `shapes` says how a row looks."""
    text = text[:GUESSED_CHARACTERS]
    bare = text.strip()
    if not bare.strip("\0 \t\r\n"):
        return "The line is zero bytes, so the file was not written or copied whole: copy it again."
    if "\0" in text:
        return "There are zero bytes in it: save UTF-16 text as UTF-8, or copy a damaged file again."
    if _is_python(bare):
        return "It is a Python dict; write it with json.dumps."
    if "\r{" in bare or "\r\n" in bare:
        return "Its lines end in carriage returns alone; save the file with line feeds (\\n)."
    if bare.endswith(",") and _is_object(bare.removesuffix(",")):
        return "A comma stands at the end of the line: remove it from all lines with sed 's/},[[:space:]]*$/}/'."
    if bare in ("[", "]", "],") or _is_object(bare.removeprefix("[").removesuffix(",")) or _is_object(
            bare.removesuffix("]").removesuffix(",")):
        return "It is a line of one JSON array: jq -c '.[]' writes each of its elements on a line of its own."
    if _goes_on(bare):
        return "Write each object on a line of its own, without a comma behind it."
    if YAML.match(text):
        return "It looks like YAML; write each record as one JSON object on one line."
    if "{" not in text and "," in text:
        return ("It looks like CSV: put csv: in front of the address, if its columns are named like the keys of a row; "
                "or write each record as one JSON object.")
    if BARE_KEY.match(text):
        return "Put keys into double quotes."
    if COMMENT.match(text):
        return "JSON has no comments: remove the line."
    if bare.startswith("{"):
        return ("Write one complete object per line (`jq -c .` does it); line breaks inside of strings are \\n, "
                "and no comma stands before a closing bracket.")
    return f"Write one object per line: {shapes}."


def _is_object(bare: str) -> bool:
    """Whether a line that is not JSON, without what stood around it, is one object."""
    if not bare.startswith("{") or len(bare) >= GUESSED_CHARACTERS - 1:
        return False
    try:
        return isinstance(json.loads(bare), dict)
    except (ValueError, RecursionError):
        return False


def _goes_on(bare: str) -> bool:
    """Whether another object stands behind a whole one."""
    try:
        _, end = json.JSONDecoder().raw_decode(bare)
    except (ValueError, RecursionError):
        return False
    return bare.startswith("{") and BEHIND_AN_OBJECT.match(bare, end) is not None


def _is_python(bare: str) -> bool:
    looks = bare.startswith("{'") or (bare.startswith('{"') and "': " in bare)
    if not looks or len(bare) >= GUESSED_CHARACTERS:
        return False
    try:
        ast.literal_eval(bare)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
