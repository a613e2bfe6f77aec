"""tasks/launcher/forecast.py: what a training takes, and what the spec leaves to it.

Tests tasks/launcher/placement.py too.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from deployments import docs
from infra.errors import UserError
from infra.settings import Settings
from infra.spec import Method, TrainingSpec
from tasks.launcher.device_table import device_table
from tasks.launcher.forecast import count_parameters, estimate, forecast
from tasks.ui import reports
from tests.support.past import Past

NOWHERE = Path("/nowhere")
NEEDED: dict[str, Any] = {"train_data": "d", "base_model": "m", "destination": "a/b"}
LLAMA_2_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000, "intermediate_size": 11008,
              "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}


def test_parameters_of_llama_2_7b_are_counted_right() -> None:
    assert count_parameters(LLAMA_2_7B, TrainingSpec(**NEEDED, peft_method="full"))[0] == 6_738_415_616
    assert count_parameters(LLAMA_2_7B, TrainingSpec(**NEEDED, lora_rank=16))[1] == 39_976_960
    narrow = TrainingSpec(**NEEDED, lora_rank=8, lora_targets="q_proj,v_proj")
    assert count_parameters(LLAMA_2_7B, narrow)[1] == 4_194_304


def test_the_forecast_counts_steps_and_memory(settings: Settings, past: Past) -> None:
    spec = dataclasses.replace(past.spec, num_train_epochs=3, train_batch_size=4, num_ranks=1)
    expected = forecast(settings, spec, past.pack, past.base)
    assert expected.steps == 9 and expected.tokens == 1800 and (expected.seconds or 0) > 0
    assert set(expected.memory_gib) == {"weights", "gradients", "optimizer", "activations", "logits"}
    longer = forecast(settings, dataclasses.replace(spec, max_steps=5), past.pack, past.base)
    assert longer.steps == 5


def test_the_memory_that_was_used_says_what_it_is_of(settings: Settings, past: Past) -> None:
    expected, memory = forecast(settings, past.spec, past.pack, past.base), "memory of each rank"
    trained = dataclasses.replace(past.trained, peak_memory_bytes=3 << 29)
    assert expected.spent(trained)[memory] == "1.50 GiB, Python and its libraries included"
    assert dataclasses.replace(expected, device="H100").spent(trained)[memory] == "1.50 GiB"


@pytest.mark.parametrize(("model", "method", "device", "ranks", "fits", "parallelism"), [
    ("Llama-2-7B", "lora", "A40", 1, True, "ddp"), ("Llama-2-7B", "full", "A100", 1, False, "ddp"),
    ("Llama-2-7B", "full", "A100", 8, True, "fsdp"), ("Llama-2-70B", "lora", "H100", 8, True, "fsdp"),
    ("Llama-2-70B", "qlora", "H100", 1, True, "ddp"), ("Llama-2-70B", "qlora", "H200", 1, True, "ddp"),
    ("Llama-2-70B", "full", "A100", 8, False, "fsdp")])
def test_the_guides_models_fit_where_one_would_expect(
    model: str, method: Method, device: str, ranks: int, fits: bool, parallelism: str,
) -> None:
    spec = docs.guide_spec(model, method)
    counted = count_parameters(docs.GUIDE_MODELS[model], spec)
    found, _ = docs.guide_forecast(docs.GUIDE_MODELS[model], spec, *counted, ranks, device_table()[device])
    assert (found.fits, found.parallelism) == (fits, parallelism), found


@pytest.mark.parametrize(("model", "device", "nodes", "parallelism", "why", "shards"), [
    ("Llama-2-7B", "H200", 2, "ddp", r"[\d.]+ GiB a rank fit the \d+ usable GiB of H200", 1),
    ("Llama-2-13B", "A100", 2, "hsdp", r"a whole copy takes [\d.]+ GiB, shards of a node's ranks fit", 8),
    ("Llama-2-70B", "A100", 4, "fsdp", r"a whole copy takes [\d.]+ GiB, A100 has \d+ usable", 32)])
def test_several_nodes_cut_the_weights_within_one_if_that_is_enough(
    model: str, device: str, nodes: int, parallelism: str, why: str, shards: int,
) -> None:
    spec = dataclasses.replace(docs.guide_spec(model, "full"), activation_checkpointing=True)
    counted = count_parameters(docs.GUIDE_MODELS[model], spec)
    found = estimate(
        docs.GUIDE_MODELS[model], spec, docs.GUIDE_PACK, *counted, 8 * nodes, device, device_table()[device], nodes)
    assert found.parallelism == parallelism and found.ranks == 8 * nodes
    assert re.fullmatch(f"{parallelism}: {why}", found.lines()["parallelism"])
    assert found.memory_gib["optimizer"] == pytest.approx(counted[1] * 8 / shards / 2**30, rel=1e-3)


@pytest.mark.parametrize(("knobs", "device", "parts", "compiled"), [
    ({}, "H100", 4, "on"), ({}, "H200", 2, "on"), ({"train_batch_size": 2}, "H100", 1, "on"),
    ({"gradient_accumulation_steps": 3}, "H100", 3, "on"), ({"compile_layers": "off"}, "H100", 4, "off"),
    ({"pack_sequences": False}, "H100", 1, "off"), ({"activation_checkpointing": True}, "H100", 1, "off"),
    ({"max_steps": 9}, "H100", 4, "off"), ({"precision": "fp32"}, "H200", 4, "off"), ({}, "CPU", 8, "off"),
    ({"peft_method": "qlora"}, "H100", 4, "off"), ({}, "RTX", 1, "off")])
def test_the_forecast_settles_what_the_spec_leaves_open(
    knobs: dict[str, Any], device: str, parts: int, compiled: str,
) -> None:
    spec = dataclasses.replace(docs.guide_spec("Llama-2-7B", "lora"), **knobs)
    counted = count_parameters(docs.GUIDE_MODELS["Llama-2-7B"], spec)
    found = estimate(
        docs.GUIDE_MODELS["Llama-2-7B"], spec, docs.GUIDE_PACK, *counted, 1, device, device_table().get(device))
    settled = found.settle(spec)
    assert (settled.gradient_accumulation_steps, settled.compile_layers) == (parts, compiled), found.lines()


def test_a_model_of_another_family_is_counted_by_its_weights(settings: Settings, past: Past) -> None:
    Path(past.base.path, "config.json").write_text('{"n_embd": 64}')
    expected = forecast(settings, past.spec, past.pack, past.base)
    assert expected.parameters == 260_000 and expected.memory_gib["activations"] == 0


def test_an_unknown_device_costs_the_forecast_its_time_only(
    settings: Settings, past: Past, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.launcher.device_table.gpus", lambda: ("NVIDIA RTX A4000",))
    expected = forecast(settings, past.spec, past.pack, past.base)
    assert (expected.seconds, expected.fits) == (None, None) and expected.steps == 3
    assert "unknown" in reports.forecast_report(expected)


def test_a_table_of_devices_of_ones_own_is_used(settings: Settings, past: Past) -> None:
    (settings.home_path / "hardware.toml").write_text(
        "[CPU]\ntflops = 0.000001\nmemory_gib = 1\nusd_per_hour = 3600.0\nutilization = 1.0\n")
    own = forecast(settings, past.spec, past.pack, past.base)
    assert own.seconds and own.usd == pytest.approx(own.seconds, rel=1e-3)
    spent = dataclasses.replace(past.trained, seconds=7.0, ranks=3)
    assert f"| price | {own.usd:.2f} USD | 7.00 USD |" in reports.forecast_report(own, spent)
    four = forecast(settings, dataclasses.replace(past.spec, num_ranks=4), past.pack, past.base)
    assert (four.ranks, four.seconds, four.usd) == (4, own.seconds, own.usd), "ranks of a CPU share it"
    (settings.home_path / "hardware.toml").write_text("[CPU]\nflops = 1\n")
    with pytest.raises(UserError, match="table cannot be read"):
        forecast(settings, past.spec, past.pack, past.base)


def test_several_ranks_share_a_batch_before_it_is_cut() -> None:
    spec = docs.guide_spec("Llama-2-7B", "lora")
    counted = count_parameters(docs.GUIDE_MODELS["Llama-2-7B"], spec)
    found = {ranks: estimate(docs.GUIDE_MODELS["Llama-2-7B"], spec, docs.GUIDE_PACK, *counted, ranks, "H100",
                             device_table()["H100"]).parts for ranks in (1, 2, 4, 8)}
    assert found == {1: 4, 2: 2, 4: 1, 8: 1}
