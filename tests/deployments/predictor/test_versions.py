"""pytest tests/deployments/predictor/test_versions.py"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.deployments.predictor.conftest import GREEDY, SSE, Predictor, adapters_of, needs_stories, running, text_of

UNKNOWN = "0" * 64
pytestmark = needs_stories


# ---- versions --------------------------------------------------------------------------------

@pytest.mark.slow
def test_models_answer_from_one_base_and_from_full_weights(predictor: Predictor, expected: dict[str, str]) -> None:
    a, b, full = (predictor.put(name) for name in ("a", "b", "full"))
    predictor.deploy(b, model="acme/b", base_path=None)
    predictor.deploy(full, model="acme/full", base_path=None)

    with ThreadPoolExecutor(9) as pool:
        names = ["acme/tales", "acme/b", "acme/full"] * 3
        found = list(pool.map(lambda model: predictor.answer(model=model), names))

    assert [text_of(one) for one in found] == [expected[version] for version in (a, b, full)] * 3
    assert len({id(v.engine) for v in predictor.app.state.shelf.versions()}) == 2
    unnamed = predictor.ask()
    assert unnamed.status_code == 422 and "acme/b, acme/full, acme/tales" in unnamed.json()["detail"][0]["msg"]
    assert predictor.ask(model="acme/tales", version=b).status_code == 404


@pytest.mark.slow
def test_switch_under_load_never_mixes_and_drops_nothing(predictor: Predictor, expected: dict[str, str]) -> None:
    a, b, stop = predictor.put("a"), predictor.put("b"), threading.Event()
    found: list[dict[str, Any]] = []

    def client() -> None:
        while not stop.is_set():
            found.append(predictor.answer(model="acme/tales"))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        for version in (b, a, b, a, b):
            assert predictor.deploy(version).status_code == 200
            assert predictor.answer()["version"] == version
        stop.set()
        for one in clients:
            one.result()

    assert len(found) > 8 and {one["version"] for one in found} == {a, b}
    assert all(text_of(one) == expected[one["version"]] for one in found)


@pytest.mark.slow
def test_rows_under_way_finish_on_their_version(predictor: Predictor, expected: dict[str, str]) -> None:
    a, b, given = predictor.put("a"), predictor.put("b"), {**GREEDY, "max_new_tokens": 80}
    whole = text_of(predictor.answer(given))
    with predictor.http.stream("POST", "/predictions", json={"input": given}, headers=SSE) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("event: output"):
            continue
        with ThreadPoolExecutor(1) as pool:
            switched = pool.submit(predictor.deploy, b)
            rest = list(lines)
            assert switched.result().json()["previous"] == a
    last = json.loads([line for line in rest if line.startswith("data: ")][-1].removeprefix("data: "))
    assert last["version"] == a and text_of(last) == whole
    assert text_of(predictor.answer()) == expected[b]


@pytest.mark.slow
def test_superseded_version_still_finishes_its_row_and_is_then_unloaded(predictor: Predictor) -> None:
    shelf, a = predictor.app.state.shelf, predictor.put("a")
    held = shelf.claim(a, None)
    b, third = predictor.put("b"), predictor.put("a", _fainter)
    first, second = predictor.deploy(b), predictor.deploy(third)

    assert (first.json()["previous"], second.json()["previous"]) == (a, b)
    assert {v.id for v in shelf.versions()} == {a, b, third}
    shelf.release(held)
    assert {v["version"] for v in predictor.http.get("/models").json()["versions"]} == {b, third}
    assert [predictor.ask(version=v).status_code for v in (a, b, third)] == [404, 200, 200]
    assert set(adapters_of(predictor)) == {b, third}
    assert predictor.deploy(a).status_code == 200 and set(adapters_of(predictor)) == {a, third}


def test_deploy_is_idempotent_and_rolls_back(predictor: Predictor, expected: dict[str, str]) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    first, again = predictor.deploy(b).json(), predictor.deploy(b).json()
    back = predictor.deploy(a, smoke_prompt="The").json()

    assert first == again and first["smoke"].startswith(expected[b])
    assert (first["version"], first["status"], first["previous"]) == (b, "serving", a)
    assert (back["version"], back["previous"]) == (a, b) and text_of(predictor.answer()) == expected[a]


def test_a_version_is_asked_by_number_alias_or_id(predictor: Predictor) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    assert predictor.deploy(a, number=1).is_success and predictor.deploy(b, number=2).is_success
    names = {"acme/tales": b, "acme/tales:2": b, "acme/tales:champion": b, f"acme/tales:{b}": b, b: b,
             "acme/tales:1": a, "acme/tales:previous": a, f"acme/tales:{a}": a}
    assert {name: predictor.answer(version=name)["version"] for name in names} == names
    assert predictor.answer(model="acme/tales:1")["model"] == "acme/tales"
    refused = predictor.ask(version="acme/tales:3")
    assert refused.status_code == 404 and "expected one of 1, 2, champion, previous" in refused.json()["detail"]
    assert predictor.http.get("/models").json()["models"]["acme/tales"]["number"] == 2
    assert predictor.ask(version="acme/other:1").status_code == 404


def test_a_version_that_is_deleted_is_forgotten_as_the_previous_one_too(predictor: Predictor) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    assert predictor.deploy(a, number=1).is_success and predictor.deploy(b, number=2).is_success
    gone = predictor.http.delete("/deployments/acme/tales", params={"version": a})
    assert gone.status_code == 200 and predictor.answer()["version"] == b
    for name in (a, "acme/tales:1", "acme/tales:previous", f"acme/tales:{a}"):
        assert predictor.ask(version=name).status_code == 404, name
    assert predictor.http.get("/models").json()["models"]["acme/tales"]["previous"] is None
    assert predictor.http.delete("/deployments/acme/tales", params={"version": a}).status_code == 404
    assert predictor.http.delete("/deployments/acme/tales", params={"version": b}).status_code == 200
    assert predictor.ask(model="acme/tales").status_code == 404
    assert predictor.deploy(b).status_code == 200


def test_removed_model_is_gone_and_its_memory_too(predictor: Predictor) -> None:
    assert predictor.http.delete("/deployments/acme/tales").status_code == 200
    assert predictor.ask(model="acme/tales").status_code == 404
    assert predictor.http.get("/models").json() == {"models": {}, "versions": [], "failed": {}}
    assert predictor.http.delete("/deployments/acme/tales").status_code == 404
    assert "Deploy a version first" in predictor.ask().json()["detail"][0]["msg"]
    missing = predictor.deploy(predictor.put("a"), base_path="/nowhere")
    assert missing.status_code == 422 and "a folder on the predictor's machine" in missing.json()["error"]
    assert predictor.deploy(predictor.put("a")).status_code == 200


def _weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: change(weight).contiguous() for name, weight in load_file(path).items()}, path)


def _set(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _fainter(folder: Path) -> None:
    _weights(folder, lambda weight: weight * 0.9)


def _nan(folder: Path) -> None:
    _weights(folder, lambda weight: weight * float("nan"))


def _wrong_shape(folder: Path) -> None:
    _weights(folder, lambda weight: weight[:, :-1])


def _half(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[::2]), path)


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def _not_lora(folder: Path) -> None:
    _set(folder / "adapter_config.json", peft_type="IA3")


def _silent(folder: Path) -> None:
    _set(folder / "serve.json", stop_ids=list(range(512)))


def _no_card(folder: Path) -> None:
    (folder / "base.json").write_text("{}")


@pytest.mark.parametrize(("change", "status", "said"), [
    (_nan, 409, "not finite"), (_half, 422, "lacks"), (_wrong_shape, 422, "cannot be loaded"),
    (_cut, 422, "cannot be loaded"), (_pickle, 422, "adapter_model.bin"), (_not_lora, 422, "IA3"),
    (_silent, 422, "empty answer"), (_no_card, 422, "base.json")])
def test_bad_version_is_refused_and_the_old_one_answers(
    served: Predictor, expected: dict[str, str], change: Callable[[Path], None], status: int, said: str,
) -> None:
    refused, a = served.deploy(served.put("b", change)), served.put("a")

    assert refused.status_code == status and said in refused.json()["error"]
    assert text_of(served.answer(version=a)) == expected[a] and served.answer()["version"] == a
    assert adapters_of(served) == [a] and len(served.app.state.shelf.versions()) == 1


@pytest.mark.parametrize(("order", "status", "said"), [
    ({"folder": "versions/none"}, 503, "missing or damaged"),
    ({"folder": "../../etc"}, 422, "folder is"),
    ({"base_digest": "c" * 64}, 422, "trained on base"),
    ({"version": UNKNOWN}, 422, "the folder holds version"),
    ({"model": "Acme/tales"}, 422, "destination is"),
    ({"surprise": 1}, 422, "surprise is not a known field")])
def test_bad_order_is_refused_and_the_old_version_answers(
    served: Predictor, expected: dict[str, str], order: dict[str, Any], status: int, said: str,
) -> None:
    a, b = served.put("a"), served.put("b")
    refused = served.deploy(**{"version": b, "folder": f"versions/{b}", **order})
    assert refused.status_code == status and said in refused.json()["error"]
    assert text_of(served.answer()) == expected[a]


def test_damaged_folder_is_not_loaded(predictor: Predictor, expected: dict[str, str]) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    weights = Path(predictor.settings.store_root) / "versions" / b / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert predictor.deploy(b).status_code == 503 and text_of(predictor.answer()) == expected[a]


def test_record_that_cannot_be_written_leaves_the_old_version(predictor: Predictor, expected: dict[str, str]) -> None:
    records = predictor.settings.home_path / "predictor"
    shutil.rmtree(records)
    records.write_text("in the way")
    assert predictor.deploy(predictor.put("b")).status_code == 503
    assert text_of(predictor.answer()) == expected[predictor.put("a")]


@pytest.mark.slow
def test_restart_serves_again_and_reports_what_it_cannot(
    tmp_path: Path, versions: Path, expected: dict[str, str],
) -> None:
    with running(tmp_path, versions) as before:
        a, b, full, lost = before.put("a"), before.put("b"), before.put("full"), before.put("a", _fainter)
        for version, model in ((a, "acme/kept"), (b, "acme/kept"), (full, "acme/full"), (lost, "acme/lost")):
            assert before.deploy(version, model=model).status_code == 200
        listed = before.http.get("/models").json()["models"]
    shutil.rmtree(tmp_path / "store" / "versions" / lost)
    (tmp_path / "predictor" / "acme--odd.json").write_text("{")

    with running(tmp_path, versions) as after:
        found = after.http.get("/models").json()
        assert found["models"] == {name: listed[name] for name in ("acme/full", "acme/kept")}
        assert "missing or damaged" in found["failed"]["acme/lost"] and "record" in found["failed"]["acme/odd"]
        assert {v: text_of(after.answer(version=v)) for v in (a, b, full)} == expected
        assert after.deploy(after.put("a", _fainter), model="acme/lost").status_code == 200
        assert list(after.http.get("/models").json()["failed"]) == ["acme/odd"]
