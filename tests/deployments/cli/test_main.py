"""The `anneal` command: pytest tests/deployments/cli/test_main.py"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import main as cli
from deployments.cli.options import INPUTS, Parser, add_spec_options, forced, spec_from
from infra.errors import Broken
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.ingest import ingest
from tasks.launcher.forecast import Forecast
from tests.conftest import ROOT

REQUIRED = ["--train-data", "d.jsonl", "--base-model", "b", "--destination", "a/b"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a stack; os.environ is put back, for commands set it."""
    for name in ("PREFECT_API_URL", "ANNEAL_PREDICTOR_URL", "ANNEAL_PREFECT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})
    return tmp_path


@pytest.fixture
def forecast(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A flows.finetune whose `estimate` tests replace; the real one imports prefect."""
    module = types.ModuleType("flows.finetune")
    monkeypatch.setitem(sys.modules, "flows.finetune", module)
    yield module


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A predictor that says hello to the one model it knows; the list gets the requests."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((body, self.headers["Authorization"]))
            known = body.get("model") == "a/b" or "version" in body
            answer = {"output": ["Hel", "lo"], "error": None} if known else {"detail": "not served here"}
            is_stream = known and self.headers["Accept"] == "text/event-stream"
            events = [("output", {"chunk": "Hel"}), ("output", {"chunk": "lo"}), ("completed", answer)]
            text = "".join(f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n" for name, data in events)
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((text if is_stream else json.dumps(answer)).encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANNEAL_PREDICTOR_URL", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def options_of(*arguments: str) -> TrainingSpec:
    """The spec that arguments ask for."""
    parser = Parser()
    add_spec_options(parser)
    return spec_from(parser.parse_args(arguments))


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from deployments.cli import main; main.parser(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"prefect", "mlflow", "torch", "pydantic", "httpx"} & set(modules)


def test_options_are_the_fields_of_the_spec() -> None:
    parser = Parser(add_help=False)
    add_spec_options(parser)
    assert {action.dest for action in parser._actions} == {field.name for field in dataclasses.fields(TrainingSpec)}


def test_required_options_alone_give_the_defaults() -> None:
    assert options_of(*REQUIRED) == TrainingSpec(train_data="d.jsonl", base_model="b", destination="a/b")


def test_options_carry_numbers_switches_and_choices() -> None:
    spec = options_of(*REQUIRED, "--lora-rank", "4", "--learning-rate", "3e-4", "--pack-sequences",
                      "--no-deploy", "--peft-method", "full", "--task-type", "chat")
    assert (spec.lora_rank, spec.learning_rate, spec.pack_sequences, spec.deploy, spec.peft_method, spec.task_type) == (
        4, 3e-4, True, False, "full", "chat")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--lora-rank", "1.5"], 'lora_rank is "1.5"; expected a value of type int'),
    (["--lora-rank", "0"], "lora_rank is 0; expected at least 1"),
    (["--learning-rate", "nan"], "learning_rate is nan; expected a finite number"),
    (["--task-type", "poetry"], 'task_type is "poetry"; expected one of auto, summary, classification, question'),
    (["--peft-method", "dora"], 'peft_method is "dora"; expected one of lora, qlora, full'),
    (["--peft-method", "qlora", "--parallelism", "fsdp"], "expected auto or ddp with qlora"),
    (["--no-run-validation", "--keep-weights", "best"], "Leave run_validation on."),
    (["--destination", "../x"], 'destination is "../x"; expected owner/name'),
    (["--epochs", "3"], "unknown option --epochs. Did you mean --num-train-epochs? `anneal train --help` lists"),
    (["--pack-sequense"], "unknown option --pack-sequense. Did you mean --pack-sequences"),
    (["--peft-method", "lroa"], "expected one of lora, qlora, full. Did you mean lora?"),
    (["--no-such-thing"], "unknown option --no-such-thing. `anneal train --help` lists the options."),
])
def test_wrong_value_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", *REQUIRED, *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_missing_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--train-data", "x"]) == 2
    assert "--base-model, --destination" in capsys.readouterr().err


def test_uploaded_data_is_found_in_the_store(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    (tmp_path / "chats.jsonl").write_text('{"text": "hello"}\n')
    assert cli.main(["upload", str(tmp_path / "chats.jsonl")]) == 0
    address = capsys.readouterr().out.strip()
    assert address.startswith("store://datasets/") and address.endswith("/chats.jsonl")
    assert ingest(settings, store, address).bytes == 18


@pytest.mark.slow
def test_a_machine_that_waits_for_trainings_ends_when_it_is_told(tmp_path: Path) -> None:
    joined = subprocess.Popen([sys.executable, "-m", "deployments.cli.main", "join", "1"], stderr=subprocess.PIPE,
                              text=True, env={**os.environ, "ANNEAL_HOME": str(tmp_path)}, cwd=ROOT)
    assert joined.stderr is not None
    assert any("waits for trainings" in line for line in iter(joined.stderr.readline, ""))
    joined.terminate()
    joined.communicate(timeout=30)
    assert joined.returncode == 143


def test_json_reports_an_error_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["type"] == "UserError"


def test_json_keeps_what_libraries_print_out_of_stdout(
    forecast: types.ModuleType, capsys: pytest.CaptureFixture[str],
) -> None:
    def estimate(spec: TrainingSpec) -> Forecast:
        print("chatter")
        return Forecast(
            device="CPU", ranks=2, steps=spec.lora_rank, tokens=90, parameters=1000, trainable=10,
            memory_gib={"weights": 0.5, "logits": 0.25}, parallelism="ddp", why="asked for", fits=True, seconds=90.0,
            usd=0.5, usd_per_hour=10.0)

    forecast.estimate = estimate  # type: ignore[attr-defined]
    assert cli.main(["estimate", *REQUIRED, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 8
    assert "chatter" in captured.err
    assert cli.main(["estimate", *REQUIRED]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert told["device"].strip() == "2 x CPU" and told["steps"].strip() == "8 (90 tokens)"
    assert told["memory of each rank"].strip() == "0.75 GiB (weights 0.50, logits 0.25)"
    assert (told["time"].strip(), told["price"].strip()) == ("90 s", "0.50 USD")


@pytest.mark.parametrize(("error", "code"), [(Broken("it fell over"), 1), (KeyboardInterrupt(), 130)])
def test_exit_code_says_whose_fault_it_was(
    error: BaseException, code: int, forecast: types.ModuleType,
) -> None:
    def estimate(_: TrainingSpec) -> Forecast:
        raise error

    forecast.estimate = estimate  # type: ignore[attr-defined]
    assert cli.main(["estimate", *REQUIRED]) == code


def test_wrong_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ANNEAL_MLFLOW_PORT", "x")
    assert cli.main(["status"]) == 2
    assert "ANNEAL_MLFLOW_PORT" in capsys.readouterr().err


def test_status_and_down_without_a_stack(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json"]) == 1, "something is stopped"
    states = json.loads(capsys.readouterr().out)["services"]
    assert {service["state"] for service in states.values()} == {"stopped"}
    assert cli.main(["down"]) == 0
    assert "Nothing was running" in capsys.readouterr().out


def test_train_refuses_a_stack_that_died(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = {"url": "http://127.0.0.1:9/api", "pid": 1, "started": 1.0, "health": "http://127.0.0.1:9/api/health"}
    (home / "stack.json").write_text(json.dumps({"services": {"prefect": dead}}))
    assert cli.main(["train", *REQUIRED]) == 2
    assert "anneal up" in capsys.readouterr().err


def test_force_switches_the_gate_off_and_says_what_that_does(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def stop(settings: Settings) -> None:
        told.append("checked")
        raise Broken("far enough")

    monkeypatch.setattr(cli, "_check_server", stop)
    assert cli.main(["train", *REQUIRED, "--force"]) == 1 and told
    assert "--force: the gate is off. The version is deployed and becomes the champion" in capsys.readouterr().err
    spec = spec_from(cli.parser().parse_args(["train", *REQUIRED]))
    assert (spec.gate, forced(spec, "").gate, forced(spec, "off").gate) == ("auto", "off", "off")
    assert cli.main(["train", *REQUIRED, "--force", "--gate", "not_worse_than_base"]) == 2
    assert "--force and --gate not_worse_than_base contradict each other" in capsys.readouterr().err


def test_predict_prints_the_text(predictor: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "a/b", "Hi", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    assert predictor == [({"model": "a/b", "input": {"prompt": "Hi", "temperature": 0.0}}, None)]


def test_predict_asks_a_version_by_its_id_and_sends_the_key(
    predictor: list[Any], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANNEAL_API_KEY", "secret")
    assert cli.main(["predict", "0" * 64, "Hi"]) == 0
    assert predictor == [({"version": "0" * 64, "input": {"prompt": "Hi"}}, "Bearer secret")]


def test_predict_refuses_a_version_of_what_is_no_name(
    predictor: list[Any], capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["predict", "http://x", "Hi"]) == 2
    assert "owner/name" in capsys.readouterr().err and predictor == []


def test_predict_streams_on_a_terminal(
    predictor: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["predict", "a/b", "Hi"]) == 0
    assert capsys.readouterr().out == "Hello\n"


def test_predict_shows_the_predictors_refusal(predictor: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "no/such", "Hi"]) == 2
    assert "not served here" in capsys.readouterr().err


def test_predict_without_a_predictor_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "a/b", "Hi"]) == 2
    assert "anneal up" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["a/b"], "required: FOLDER"), (["a/b", "out", "--dtype", "fp16"], "invalid choice: 'fp16'")])
def test_merge_refuses_a_wrong_command(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["export", "--format", "merged", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_inputs_are_the_predictors() -> None:
    schemas = pytest.importorskip("deployments.predictor.schemas")
    assert {"prompt", *INPUTS} == set(schemas.Input.model_fields)
