"""A version loads by MLflow's own means, without Anneal: infra/models/pyfunc_model.py and pyfunc_files.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from infra.models.pyfunc_files import write_model
from tasks.distributed.codec import Codec
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.model import load_base, load_tokenizer
from tests.conftest import free_port, wait_until_responds

pytestmark = pytest.mark.slow
PROMPT, TOKENS = "Once upon a time", 12
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi </s> there"}]
TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}")
LOAD = """
import json, sys, mlflow
uri, config, rows, params = map(json.loads, sys.argv[1:])
answers = mlflow.pyfunc.load_model(uri, model_config=config).predict(rows, params=params)
assert not {"infra", "tasks"} & set(sys.modules)
print(json.dumps(list(answers)))
"""


@pytest.fixture(scope="module")
def adapter(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A version's folder with an adapter that changes what its base answers, and the answer to PROMPT."""
    folder = tmp_path_factory.mktemp("version")
    torch.manual_seed(0)
    base = load_base(stories, dtype=torch.float32, device=torch.device("cpu"))
    tuned = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    tuned.save_pretrained(folder)
    described(folder, stories, "lora")
    codec = Codec(load_tokenizer(stories))
    (ids,) = decode_all(tuned, [codec.prompt(PROMPT)], [Sampling(max_new_tokens=TOKENS)], stop_ids=codec.stop_ids)
    return folder, codec.decode(ids)


def described(folder: Path, base: Path, method: str, kind: str = "prompt") -> None:
    for path in base.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "base.json").write_text(json.dumps({"name": "stories", "method": method, "dtype": "fp32"}))
    (folder / "serve.json").write_text(json.dumps({"kind": kind, "prompt_template": "{prompt}"}))


def load(folder: Path, config: dict[str, str], rows: Any, **params: Any) -> subprocess.CompletedProcess[str]:
    """In a process that knows nothing of this checkout."""
    words = [json.dumps(word) for word in (str(folder), config, rows, params)]
    return subprocess.run([sys.executable, "-P", "-c", LOAD, *words], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": "", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})


def test_an_adapter_answers_as_the_predictor_does(adapter: tuple[Path, str], stories: Path, tmp_path: Path) -> None:
    folder, wanted = adapter
    write_model(tmp_path / "model", folder, {"base": "stories", "revision": ""}, model_id="m-1", run="r")
    done = load(tmp_path / "model", {"base": str(stories)}, [PROMPT], max_new_tokens=TOKENS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [wanted] and wanted
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"MLmodel", "pyfunc_model.py", "requirements.txt", "adapter_model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".bin", ".pt"))]
    assert str(folder).encode() not in (tmp_path / "model" / "MLmodel").read_bytes()


def test_a_path_that_looks_like_an_address_is_a_path(adapter: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "a #1 x=%20 100% [*]?"
    write_model(folder, adapter[0], {"base": "stories", "revision": ""}, model_id="m-1", run="r")
    assert "model_code_path: pyfunc_model.py\n" in (folder / "MLmodel").read_text()


def test_a_base_that_is_no_hub_model_is_asked_for(adapter: tuple[Path, str], tmp_path: Path) -> None:
    write_model(tmp_path / "model", adapter[0], {"base": "stories", "revision": ""}, model_id="m-1", run="r")
    done = load(tmp_path / "model", {}, [PROMPT])
    assert done.returncode != 0
    assert "base is 'stories', which is no folder of this machine. Name the folder: mlflow.pyfunc." in done.stderr


def test_whole_weights_stay_where_they_are(stories: Path, tmp_path: Path) -> None:
    version = tmp_path / "version"
    shutil.copytree(stories, version)
    described(version, stories, "full")
    write_model(tmp_path / "model", version, {"weights": str(version)}, model_id="m-1", run="r")
    assert not list((tmp_path / "model").glob("*.safetensors"))
    done = load(tmp_path / "model", {}, [PROMPT, PROMPT], max_new_tokens=2)
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second != ""


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_a_conversation_becomes_the_token_ids_of_training(stories: Path, template: str) -> None:
    from infra.models.pyfunc_model import PyfuncVersion

    model, codec = PyfuncVersion(), Codec(load_tokenizer(stories))
    model.tokenizer, codec.tokenizer.chat_template = load_tokenizer(stories), template or None
    model.tokenizer.chat_template = template or None
    wanted = codec.question("messages", {"messages": [*CHAT, {"role": "assistant", "content": "x"}]}, "")[0]
    assert model.conversation(CHAT) == wanted
    model.template = "{prompt}\n"
    assert model.prompt("Hi </s>") == codec.prompt("Hi </s>\n")


@contextmanager
def served(folder: Path, config: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local", "-p", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    server = subprocess.Popen(
        [sys.executable, *command], start_new_session=True,
        env={**os.environ, "SERVING_MODEL_CONFIG": json.dumps(config), "PATH": path})
    try:
        wait_until_responds(f"http://127.0.0.1:{port}/ping", 120)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_mlflow_models_serve_answers(adapter: tuple[Path, str], stories: Path, tmp_path: Path) -> None:
    folder, wanted = adapter
    write_model(tmp_path / "model", folder, {"base": "stories", "revision": ""}, model_id="m-1", run="r")
    with served(tmp_path / "model", {"base": str(stories)}) as url:
        body = {"inputs": [PROMPT], "params": {"max_new_tokens": TOKENS}}
        assert httpx.post(url, json=body, timeout=120).json() == {"predictions": [wanted]}
