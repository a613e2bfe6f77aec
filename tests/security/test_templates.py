"""A chat template that somebody else wrote can do no harm: pytest tests/security/test_templates.py

Tests tasks/distributed/template_process.py, tasks/distributed/templates.py too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer

from deployments.predictor.lanes import Lane
from infra.errors import DataError
from tasks.distributed.codec import Codec
from tasks.distributed.templates import Templates
from tests.conftest import wait_for
from tests.deployments.predictor.conftest import (
    PROMPT,
    Predictor,
    needs_stories,
    running,
    versions,  # noqa: F401  (a fixture)
)

TURNS = [{"role": "user", "content": "\ue0000\ue001"}, {"role": "assistant", "content": "\ue0001\ue001"}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MEMORY, RECURSION, UNSAFE = "takes more than 256 MiB of memory", "RecursionError", "is unsafe"
HARMFUL = {
    "{{ 'a' * 10**10 }}": MEMORY,
    "{{ [0] * 10**10 }}": MEMORY,
    "{{ '%1000000000d' % 1 }}": MEMORY,
    "{{ 'x'.ljust(10**9) }}": MEMORY,
    "{{ '{:>1000000000}'.format(1) }}": MEMORY,
    "{% set ns = namespace(x='ab') %}{% for i in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}": MEMORY,
    "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}": MEMORY,
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": RECURSION,
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}": RECURSION,
    "{% if x %}" * 5000 + "{% endif %}" * 5000: RECURSION,
    "{{ ''.__class__.__mro__ }}": UNSAFE,
    "{{ lipsum.__globals__['os'].system('id') }}": UNSAFE,
    "{{ cycler('a').__init__.__globals__ }}": UNSAFE,
    "{{ messages.append(1) }}": UNSAFE,
    "{{ namespace(__class__=1) }}": "underscore-prefixed",
    "{% include '/etc/passwd' %}": "no loader",
    "{{ raise_exception('no' * 10**6) }}": "nononono",
    "{% for x in": "unexpected 'end of template'",
    "a" * 300_000: "300000 characters long",
    "a" * 2_000_000: "2000000 characters long",
}
SOUND = [
    PLAIN, "{{ bos_token }}{{ messages | tojson(indent=2) }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}", "{{- '  x  ' | trim -}}  {{ 1.5 }}",
    "{{ 'aaa bbb ccc' | wordwrap(4) }}{{ '\\u00e9\\n\\t' }}{{ 'x'.encode('utf-16') }}",
    "{% set f = namespace(n=0) %}{% for m in messages %}{% set f.n = f.n + 1 %}{% if f.n > 1 %}{% break %}{% endif %}"
    "{{ m['role'] | upper }}{% endfor %}{{ dict(a=1) }}{{ tools is none }}{{ nothing is defined }}"
    "{{ add_generation_prompt }}",
]


@pytest.fixture(scope="module")
def templates() -> Templates:
    return Templates()


@pytest.mark.parametrize(("template", "said"), HARMFUL.items(), ids=lambda text: text[:40])
def test_a_harmful_template_is_one_sentence(templates: Templates, template: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        templates.render(template, TURNS, TOKENS)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert templates.render(PLAIN, TURNS, TOKENS).startswith("user: ")


@pytest.mark.slow
def test_a_template_without_end_is_ended_and_not_tried_again(templates: Templates) -> None:
    for limit_s in (40, 0.5):
        began = time.monotonic()
        with pytest.raises(DataError, match="takes more than 5 s"):
            templates.render(FOREVER, TURNS, TOKENS)
        assert time.monotonic() < began + limit_s


@pytest.mark.parametrize("template", SOUND, ids=range(len(SOUND)))
def test_the_text_is_that_of_transformers(templates: Templates, stories: Path, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    wanted = tokenizer.apply_chat_template(TURNS, tokenize=False, chat_template=template)
    assert templates.render(template, TURNS, tokenizer.special_tokens_map) == wanted


@pytest.mark.parametrize("template", [5, ["x"], {"a": PLAIN}, None])
def test_what_is_no_template_is_refused(templates: Templates, template: object) -> None:
    with pytest.raises(DataError, match="is no text"):
        templates.render(template, TURNS, TOKENS)


@pytest.mark.parametrize("named", [{"tool_use": PLAIN}, {"default": 5}, {"default": ["x"]}])
def test_several_templates_without_a_usable_default_are_refused(stories: Path, named: dict[str, object]) -> None:
    codec = Codec(AutoTokenizer.from_pretrained(stories))
    codec.tokenizer.chat_template = named
    with pytest.raises(DataError, match="chat template"):
        codec.turn("hi", "")


@pytest.mark.slow
def test_a_killed_child_is_started_again(templates: Templates) -> None:
    for number in range(3):
        assert templates.render(f"{PLAIN}{number}", TURNS, TOKENS).endswith(str(number))
        assert templates._child is not None
        os.kill(templates._child.pid, (signal.SIGKILL, signal.SIGTERM, signal.SIGALRM)[number])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def files_kept(templates: Templates) -> int:
    """How many files more are open, in a forked process, after five children were ended and started again."""
    before = open_files()
    templates.render(PLAIN + "forked", TURNS, TOKENS)
    for number in range(5):
        assert templates._child is not None
        templates._child.kill()
        templates.render(f"{PLAIN}again {number}", TURNS, TOKENS)
    return open_files() - before


@pytest.mark.slow
def test_a_child_that_is_started_again_leaves_no_open_file(templates: Templates) -> None:
    templates.render(PLAIN, TURNS, TOKENS)
    if (forked := os.fork()) == 0:  # alone: threads of earlier tests open and close files here
        kept = 1
        with suppress(Exception):
            kept = files_kept(templates)
        os._exit(kept)
    assert os.waitpid(forked, 0)[1] == 0 and templates.render(PLAIN + "here too", TURNS, TOKENS)


@pytest.mark.parametrize("template", ["{% for x in", "{{ x.y.z }}", "{{ ''.__class__.__mro__ }}", "{{ x | y }}"])
def test_a_mistake_in_a_template_is_no_refusal_of_roles(templates: Templates, template: str) -> None:
    with pytest.raises(DataError, match=r"cannot be rendered for 2 messages \([A-Za-z]+Error: .*completion rows"):
        templates.render(template, TURNS, TOKENS)
    with pytest.raises(DataError, match=r"refuses the roles user, assistant \(no system\)\. Change the order"):
        templates.render("{{ raise_exception('no system') }}", TURNS, TOKENS)


def test_many_different_conversations_cost_little(templates: Templates) -> None:
    templates.render(PLAIN, TURNS, TOKENS)
    began = time.monotonic()
    for count in range(1, 200):
        templates.render(PLAIN, TURNS * count, TOKENS)
    fresh, began = time.monotonic() - began, time.monotonic()
    for _ in range(1000):
        templates.render(PLAIN, TURNS, TOKENS)
    assert fresh < 10 and time.monotonic() - began < 1


def test_the_child_knows_no_secret_and_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNEAL_API_KEY", "very-secret")
    templates = Templates()
    templates.render(PLAIN, TURNS, TOKENS)
    assert templates._child is not None
    folder = Path(f"/proc/{templates._child.pid}")
    environment = (folder / "environ").read_bytes()
    assert b"very-secret" not in environment and b"AWS_" not in environment
    assert "libtorch" not in (folder / "maps").read_text()


@pytest.mark.slow
def test_the_child_goes_with_its_owner_and_with_its_parent() -> None:
    templates = Templates()
    templates.render(PLAIN, TURNS, TOKENS)
    assert templates._child is not None
    pid = templates._child.pid
    del templates
    wait_for(lambda: not psutil.pid_exists(pid), "the child outlives its owner", 20)
    code = ("import sys, time\nfrom tasks.distributed.templates import Templates\nt = Templates()\n"
            f"t.render({PLAIN!r}, {TURNS!r}, {{}})\nprint(t._child.pid, flush=True)\ntime.sleep(100)")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "it outlives us", 20)


def test_a_forked_process_has_a_child_of_its_own(templates: Templates) -> None:
    templates.render(PLAIN, TURNS, TOKENS)
    assert templates._child is not None
    forked = os.fork()
    if forked == 0:
        text = templates.render(PLAIN + "forked", TURNS, TOKENS)
        os._exit(0 if text.endswith("forked") and templates._child.pid > 0 else 1)
    assert templates.render(PLAIN + "here", TURNS, TOKENS).endswith("here")
    assert os.waitpid(forked, 0)[1] == 0
    assert templates._child.poll() is None and templates.render(PLAIN + "still", TURNS, TOKENS).endswith("still")


@needs_stories
@pytest.mark.slow
def test_a_version_whose_template_never_ends_is_not_deployed_and_nobody_waits(
    tmp_path: Path, versions: Path,  # noqa: F811
) -> None:
    def change(template: str, folder: Path) -> None:
        card = json.loads((folder / "serve.json").read_text())
        (folder / "serve.json").write_text(json.dumps({**card, "kind": "messages"}))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))

    def order(predictor: Predictor, template: str, model: str) -> tuple[int, str]:
        response = predictor.deploy(predictor.put("a", lambda folder: change(template, folder)), model)
        return response.status_code, response.text

    with running(tmp_path, versions) as predictor:
        assert order(predictor, PLAIN, "acme/tales")[0] == 200
        found = list[tuple[int, str]]()
        deploying = threading.Thread(target=lambda: found.append(order(predictor, FOREVER, "acme/loop")))
        deploying.start()
        while deploying.is_alive():
            answered = predictor.answer({"prompt": PROMPT, "max_new_tokens": 1}, model="acme/tales")
            assert predictor.http.get("/health/live").elapsed.total_seconds() < 1 and answered["output"] is not None
        assert found[0][0] == 422 and "takes more than 5 s" in found[0][1]
        status, said = order(predictor, "{{ 'a' * 10**10 }}", "acme/memory")
        assert status == 422 and MEMORY in said


def test_a_lane_goes_on_after_an_error_and_refuses_too_much() -> None:
    lane, go = Lane("test", most=2), threading.Event()
    first, second = lane.submit(lambda: go.wait(20)), lane.submit(lambda: 1 // 0)
    with pytest.raises(Exception, match="at most 2"):
        lane.submit(int)
    go.set()
    assert first.result(20) and isinstance(second.exception(20), ZeroDivisionError)
    assert lane.submit(lambda: 3).result(20) == 3
