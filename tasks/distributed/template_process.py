"""Render chat templates: a process of its own, because a template is a program that somebody else wrote.

In:   a line of JSON, a list of conversations: template, messages, tokens, tools, prompt
Out:  a line of JSON, a list: text, refused or failed of each
The environment is transformers' own, so that the text is what `apply_chat_template` gives. A template that takes too
much processor time is killed by the kernel, one that takes too much memory gets a MemoryError; it can write
to no file. Leaves nothing on disk; ends by itself when nobody has asked for a while, and with its parent.
Started by tasks/distributed/templates.py: python -m tasks.distributed.template_process PARENT_PID
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from infra.parent_death import die_with_parent

CPU_S = 5
"""Processor time of one rendering. A common one takes a millisecond; wall-clock time would punish a busy machine."""
MEMORY_BYTES = 256 << 20
"""What all renderings may have beside the libraries."""
IDLE_S = 30
TEXT_CHARACTERS, TURN_CHARACTERS, REPEATS = 1 << 18, 1 << 14, 2
"""The longest text: so much, so much for each message, and so many times what messages and tools say."""
SAID_CHARACTERS = 200


def main() -> int:
    """Answer until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    die_with_parent(int(sys.argv[1]))
    failing: dict[str, Any] = {"template": "{{ 0 / 0 }}", "messages": [], "tokens": {}, "tools": None, "prompt": False}
    render(failing)  # all that is loaded late, errors' part included
    limit_resources()
    _say([])
    while True:
        signal.alarm(IDLE_S)
        line = sys.stdin.buffer.readline()
        signal.alarm(0)
        if not line:
            return 0
        _say([_limited(asked) for asked in json.loads(line)])


def limit_resources() -> None:
    """From here on: little memory, nothing written to a file, no core dump."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: mapped + MEMORY_BYTES, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def render(asked: dict[str, Any]) -> dict[str, str]:
    """{text}, or {refused: why} in the template's own words, or {failed: what went wrong}."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{key: value for key, value in message.items() if value is not None} for message in asked["messages"]]
    most = TEXT_CHARACTERS + TURN_CHARACTERS * len(messages) + REPEATS * (len(str(messages)) + len(str(asked["tools"])))
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=asked["tools"], chat_template=asked["template"],
            add_generation_prompt=asked["prompt"], **asked["tokens"])
        if len(rendered[0]) > most:
            return {"failed": f"its text is {len(rendered[0])} characters long; expected at most {most}"}
        return {"text": rendered[0]}
    except MemoryError:
        return {"failed": f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as error:  # noqa: BLE001  (whatever a template raises is its own fault, and one sentence)
        if type(error) is TemplateError:  # the template's own raise_exception; mistakes in it are of kinds below
            return {"refused": _brief(error)}
        return {"failed": f"{type(error).__name__}: {_brief(error)}"}


def _brief(error: Exception) -> str:
    """What an error says, in one line."""
    said = " ".join(str(error)[: 4 * SAID_CHARACTERS].split())
    return "".join(letter if letter.isprintable() else "?" for letter in said)[:SAID_CHARACTERS]


def _limited(asked: dict[str, Any]) -> dict[str, str]:
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    answer = render(asked)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return answer


def _say(answers: list[dict[str, str]]) -> None:
    sys.stdout.write(json.dumps(answers) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
