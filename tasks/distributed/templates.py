"""Chat templates of base models and versions, rendered where they can do no harm.

In:   a template, messages     Out: the text, exactly that of transformers' `apply_chat_template`
A template may loop for ever, eat the memory or look for a way out of its sandbox: each of these is one sentence. It is
rendered by a child process with limits of its own (tasks/distributed/template_process.py), which starts with the first
conversation and is started again after a template has cost it its life. The last answers are kept. Leaves nothing on
disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from signal import SIGHUP, SIGKILL, SIGPROF, SIGTERM
from typing import Any, cast

from infra.errors import Broken, DataError, Transient
from tasks.distributed.template_process import CPU_S

START_S, WALL_S = 120, 60
"""How long the child may take to start, and for one rendering on a machine that is busy with other things."""
TEMPLATE_CHARACTERS = 1 << 20
LINE_BYTES = 1 << 28
"""No answer is longer than this, whatever the child has become."""
KEPT, KEPT_CHARACTERS, AT_ONCE = 1024, 1 << 16, 64
"""Answers that are kept, the longest question and answer of these, and how many are asked for at once."""
ROLES = 8
"""Roles that a message names."""
FIX = "Use prompt/completion rows, or a base model whose chat template works."
FROM_OUTSIDE = (0, -SIGKILL, -SIGTERM, -SIGHUP)
"""Exit codes of a child that was idle, or was ended by somebody: nothing that a template did."""
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""All that the child gets of our environment: there are keys in the rest."""

Answer = dict[str, str]
Asked = tuple[list[dict[str, Any]], list[dict[str, Any]], bool]
"""(messages, tools, up to where an answer begins)"""

ENDLESS: Answer = {"failed": f"it takes more than {CPU_S} s"}


class TemplateRefusal(DataError):
    """A template says itself that it does not take a conversation; `reason` are its own words."""

    reason = ""


class Templates:
    """The child process and what it has answered. For one thread; a forked process starts a child of its own."""

    def __init__(self) -> None:
        self._kept: dict[str, Answer] = {}
        self._endless: dict[str, Answer] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._end: Callable[[], object] = lambda: None

    def render(
        self, template: object, messages: list[dict[str, Any]], tokens: dict[str, Any], *,
        tools: list[dict[str, Any]] | None = None, prompt: bool = False,
    ) -> str:
        """The conversation as the template shows it; `prompt`: up to where an answer begins. Raises TemplateRefusal
        where the template itself does not take it, DataError where it fails."""
        if not isinstance(template, str) or len(template) > TEMPLATE_CHARACTERS:
            raise DataError(
                "the base model's chat template is " + (
                    f"{len(template)} characters long" if isinstance(template, str) else "no text"),
                allowed=f"a Jinja template of at most {TEMPLATE_CHARACTERS} characters", fix=FIX)
        line = _line(template, messages, tokens, tools, prompt)
        answer = self._endless.get(template) or self._kept.get(line)
        if answer is None:
            found = self._ask([line]) or self._ask([line])
            if found is None:
                raise Transient("the process that renders chat templates was ended twice", fix="Try again.")
            (answer,) = found
            if answer == ENDLESS:  # it is not waited for again, whatever it is asked
                self._endless[template] = answer
            self._keep(line, answer)
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            roles = [message["role"] for message in messages]
            more = ["..."] if len(roles) > ROLES else []
            refusal = TemplateRefusal(
                f"the base model's chat template refuses the roles {', '.join(roles[:ROLES] + more)} "
                f"({answer['refused']})", fix="Change the order of the roles to what the template allows.")
            refusal.reason = answer["refused"]
            raise refusal
        raise DataError(f"the base model's chat template cannot be rendered for {len(messages)} messages "
                        f"({answer['failed']})", fix=FIX)

    def look_ahead(self, template: object, asked: Iterable[Asked], tokens: dict[str, Any]) -> None:
        """Render many at once that will be asked for next: a message to the child and back takes longer than most."""
        if not isinstance(template, str) or len(template) > TEMPLATE_CHARACTERS or template in self._endless:
            return
        lines = {_line(template, messages, tokens, tools, prompt) for messages, tools, prompt in asked}
        wanted = sorted(line for line in lines if line not in self._kept and len(line) <= KEPT_CHARACTERS)
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            for line, answer in zip(some, self._ask(some) or (), strict=False):
                if "text" in answer:  # anything else is asked for again, alone
                    self._keep(line, answer)

    def _keep(self, line: str, answer: Answer) -> None:
        if len(line) + len(str(answer)) <= KEPT_CHARACTERS:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[line] = answer

    def _ask(self, lines: list[str]) -> list[Answer] | None:
        """The child's answers; None when it was idle for too long just now, or somebody ended it."""
        child = self._running()
        answers = _exchange(child, b"[%s]\n" % ",".join(lines).encode(), WALL_S)
        if answers is not None:
            return answers
        if (code := child.wait()) == -SIGPROF:
            return [ENDLESS]
        ended = {"failed": f"it ends the process that renders it, exit code {code}"}
        return None if code in FROM_OUTSIDE else [ended]

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started if there is none yet or no more."""
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self._end()
            self._owner = os.getpid()
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.distributed.template_process", str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**{name: os.environ[name] for name in INHERITED if name in os.environ}, "PYTHONPATH": paths,
                     "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
            self._end = weakref.finalize(self, _end, self._child, self._owner)
            if _exchange(self._child, b"", START_S) is None:
                raise Broken(f"the process that renders chat templates did not start, exit code {self._child.wait()}",
                             fix="Run python -m tasks.distributed.template_process 1 and see what it says.")
        return self._child


def _line(
    template: str, messages: list[dict[str, Any]], tokens: dict[str, Any], tools: list[dict[str, Any]] | None,
    prompt: bool,
) -> str:
    return json.dumps({"template": template, "messages": messages, "tokens": tokens, "tools": tools or None,
                       "prompt": prompt}, default=str)


def _exchange(child: subprocess.Popen[bytes], line: bytes, limit_s: float) -> list[Answer] | None:
    """Write a line and read the child's; None when it ended instead. Raises Transient when it took too long."""
    assert child.stdin is not None and child.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        child.stdin.write(line)
        child.stdin.flush()
        found = child.stdout.readline(LINE_BYTES)
    except BrokenPipeError:
        found = b""
    finally:
        timer.cancel()
    if found.endswith(b"\n"):
        return cast(list[Answer], json.loads(found))
    if found:
        child.kill()
    if late.is_set():
        raise Transient(f"the process that renders chat templates did not answer within {limit_s} s",
                        fix="Try again when the machine is less busy.")
    return None


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    """End a child that nobody needs any more; a forked process has only the ends of its pipes to close."""
    if owner == os.getpid():
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):  # there may be a line that it did not read
                pipe.close()
