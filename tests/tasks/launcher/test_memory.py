"""Memory of steps that answer (tasks/launcher/memory.py); of training: tests/tasks/launcher/test_forecast.py."""

from __future__ import annotations

import pytest

from deployments import docs
from tasks.launcher.forecast import count_parameters
from tasks.launcher.memory import memory_to_answer


@pytest.mark.parametrize(("model", "rows", "tokens", "gib"), [
    ("Llama-2-7B", 0, 0, 12.55), ("Llama-2-7B", 1, 4096, 12.55 + 2.0), ("Llama-2-70B", 1, 4096, 128.5 + 1.25)])
def test_weights_and_the_published_size_of_the_cache(model: str, rows: int, tokens: int, gib: float) -> None:
    """Llama 2 7B keeps 0.5 MiB a token in half precision; 70B has an eighth of its heads (arXiv 2307.09288)."""
    spec = docs.guide_spec(model, "lora")
    parameters, _ = count_parameters(docs.GUIDE_MODELS[model], spec)
    assert memory_to_answer(docs.GUIDE_MODELS[model], spec, parameters, rows, tokens) / 2**30 == pytest.approx(
        gib, rel=0.01)
