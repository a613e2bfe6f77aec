"""The real predictor on a real port, with versions of stories260K: two random adapters and full weights."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from peft import LoraConfig, get_peft_model

from deployments.predictor.app import create_app
from infra.files import digest_of, model_files, sha256_of
from infra.settings import Settings
from infra.storage.store import Store
from tasks.distributed.codec import Codec
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.model import load_base, load_tokenizer, load_tuned, save_model
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260K" / "hf"
CPU = torch.device("cpu")
PROMPT = "Once upon a time"
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_new_tokens": 16}
BASE_DIGEST = digest_of({path.name: sha256_of(path) for path in model_files(STORIES)})
SSE = {"Accept": "text/event-stream"}

needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"the base model {STORIES} is missing")


def _adapter(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_base(STORIES, dtype=torch.float32, device=CPU), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(0.5 if "lora_B" in name else 1.0)
    save_model(model, folder)


def _describe(folder: Path, method: str, **serve: Any) -> None:
    """The files that the register step adds to the weights."""
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(STORIES / name, folder / name)
    base = {"name": "stories", "digest": BASE_DIGEST, "method": method}
    card = {"prompt_template": "{prompt}", "separator": "", "context_tokens": 512, "sampling": {},
            "smoke_prompt": PROMPT}
    (folder / "base.json").write_text(json.dumps(base))
    (folder / "serve.json").write_text(json.dumps({**card, **serve}))


def version_id(folder: Path) -> str:
    """The id that the register step gives: sha256 over the files."""
    return digest_of({p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()})


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a, b and full, as the register step makes them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("versions")
    for seed, name in enumerate("ab"):
        _adapter(root / name, seed)
        _describe(root / name, "lora")
    save_model(load_base(STORIES, dtype=torch.float32, device=CPU), root / "full")
    _describe(root / "full", "full", prompt_template="{system_prompt}{prompt}")
    return root


@pytest.fixture(scope="module")
def expected(versions: Path) -> dict[str, str]:
    """The greedy answer of each version by its id, computed without the predictor."""
    codec, found = Codec(load_tokenizer(STORIES)), {}
    for name in ("a", "b", "full"):
        version = version_id(versions / name)
        model = load_tuned(STORIES, versions / name, dtype=torch.float32, device=CPU)
        rows = [Sampling(max_new_tokens=16)]
        found[version] = codec.decode(decode_all(model, [codec.prompt(PROMPT)], rows, stop_ids=codec.stop_ids)[0])
    assert len(set(found.values())) == 3
    return found


class Predictor:
    """The app under uvicorn in a thread."""

    def __init__(self, settings: Settings, versions: Path) -> None:
        self.settings, self.versions = settings, versions
        self.app = create_app(settings)
        self.listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self.app, log_config=None, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def start(self) -> None:
        self.thread.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the predictor did not become ready")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.http.close()
        self.listener.close()
        assert not self.thread.is_alive()

    def put(self, name: str, change: Callable[[Path], None] | None = None) -> str:
        """Put a version, perhaps changed, into the store as the register step does; returns its id."""
        store = Store(self.settings)
        with store.draft() as draft:
            shutil.copytree(self.versions / name, draft.path, dirs_exist_ok=True)
            if change:
                change(draft.path)
            identity = version_id(draft.path)
            if store.find(f"versions/{identity}") is None:
                draft.commit(f"versions/{identity}", {"version": identity})
        return identity

    def deploy(self, version: str, model: str = "acme/tales", **more: Any) -> httpx.Response:
        body = {"version": version, "folder": f"versions/{version}", "base_path": str(STORIES),
                "base_digest": BASE_DIGEST, **more}
        return self.http.put(f"/deployments/{model}", json=body)

    def ask(self, given: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
        return self.http.post("/predictions", json={"input": given or GREEDY, **more})

    def answer(self, given: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        response = self.ask(given, **more)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        assert found["status"] == "succeeded", found
        return found


def settings_of(home: Path, **more: Any) -> Settings:
    """Settings that do not depend on the developer's environment."""
    fixed = {"store": "", "api_key": "", "require_secret": False, "s3_endpoint_url": "", "base_folders": str(STORIES)}
    return Settings(**{"home": home, **fixed, **more})


@contextlib.contextmanager
def running(home: Path, versions: Path, **settings: Any) -> Iterator[Predictor]:
    predictor = Predictor(settings_of(home, **settings), versions)
    predictor.start()
    try:
        yield predictor
    finally:
        predictor.stop()


@pytest.fixture
def predictor(tmp_path: Path, versions: Path) -> Iterator[Predictor]:
    """A predictor of its own that serves version a as acme/tales."""
    with running(tmp_path, versions) as found:
        assert found.deploy(found.put("a")).status_code == 200
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, versions: Path) -> Iterator[Predictor]:
    """The same, shared by the tests that change nothing."""
    with running(tmp_path_factory.mktemp("served"), versions) as found:
        assert found.deploy(found.put("a")).status_code == 200
        yield found


def tokens_of(prompt: str) -> int:
    return len(Codec(load_tokenizer(STORIES)).prompt(prompt))


def text_of(prediction: dict[str, Any]) -> str:
    return "".join(prediction["output"])


def adapters_of(predictor: Predictor) -> list[str]:
    """PEFT's adapters of the only engine."""
    engine = predictor.app.state.shelf.versions()[0].engine
    found: list[str] = engine.call(lambda: list(engine.model.peft_config)).result()
    return found
