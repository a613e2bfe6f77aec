"""The tables of docs/, made from the code they describe; the forecasts for the guide's models.

In:   docs/*.md with <!-- table: name --> ... <!-- end --> marks     Out: the same files with fresh tables
Run alone: python -m deployments.docs   (tests/test_docs.py fails while a page is not up to date)
"""

from __future__ import annotations

import dataclasses
import re
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from deployments.predictor.schemas import Input
from infra.files import write_atomic
from infra.records import Pack, PackCounts
from infra.settings import Settings
from infra.spec import FIELD_TYPES, FIELDS, Method, TrainingSpec, range_of
from tasks.launcher.device_table import Device, device_table
from tasks.launcher.forecast import Forecast, count_parameters, estimate


def _llama_2(hidden: int, inner: int, layers: int, heads: int, keys: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 32_000,
            "num_attention_heads": heads, "num_key_value_heads": keys}


GUIDE_MODELS = {
    "Llama-2-7B": _llama_2(4096, 11_008, 32, 32, 32), "Llama-2-13B": _llama_2(5120, 13_824, 40, 40, 40),
    "Llama-2-70B": _llama_2(8192, 28_672, 80, 64, 8)}
"""Shapes: arXiv 2307.09288."""
GUIDE_COUNTS = PackCounts(
    rows=744, examples=14_732, tokens=3_043_291, labelled=438_807, truncated=0, lost=0, split=0, longest=1212,
    fill=0.9986)
"""SAMSum's training split in Llama-2 tokens, packed to 4,096 (measured)."""
GUIDE_PACK = Pack(folder="", digest="", chunk_tokens=4096, train=GUIDE_COUNTS, validation=GUIDE_COUNTS)
METHODS: tuple[Method, ...] = get_args(Method)
PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parameters() -> str:
    """Every knob of a training: name, values, default, meaning."""
    lines = ["| parameter | values | default | meaning |", "|---|---|---|---|"]
    for field in FIELDS:
        default = "**required**" if field.default is dataclasses.MISSING else _code(field.default)
        lines.append(f"| `{field.name}` | {_values(field)} | {default} | {field.metadata['help']} |")
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every environment variable."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `ANNEAL_{name.upper()}` | {_code(field.default)} | {field.description} |")
    return "\n".join(lines) + "\n"


def inputs() -> str:
    """What a request to the predictor may ask for."""
    lines = ["| input | default | meaning |", "|---|---|---|"]
    for name, field in Input.model_fields.items():
        default = "**required**" if field.is_required() else _code("" if field.default is None else field.default)
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def forecasts() -> str:
    """What the guide's job (SAMSum, 3 epochs) takes on common devices, from the models' configurations alone."""
    places = [(device, count) for name, device in device_table().items() if name != "CPU" for count in (1, 8)]
    lines = ["| model, method | " + " | ".join(f"{count} x {device.name}" for device, count in places) + " |",
             "|---" * (1 + len(places)) + "|"]
    for (model, config), method in product(GUIDE_MODELS.items(), METHODS):
        spec = guide_spec(model, method)
        counted = count_parameters(config, spec)
        cells = [_cell(guide_forecast(config, spec, *counted, count, device)) for device, count in places]
        lines.append(f"| {model} {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def guide_spec(model: str, method: Method) -> TrainingSpec:
    """The guide's job with one of its models."""
    return TrainingSpec(
        train_data="samsum.jsonl", base_model=model, destination="you/samsum", peft_method=method,
        chunk_size=GUIDE_PACK.chunk_tokens, train_batch_size=8, num_train_epochs=3, precision="bf16",
        pack_sequences=True)


def guide_forecast(
    config: dict[str, Any], spec: TrainingSpec, parameters: int, trainable: int, count: int, device: Device,
) -> tuple[Forecast, bool]:
    """What it takes on so many devices, and whether only with activation checkpointing."""
    tries = [estimate(config, dataclasses.replace(spec, activation_checkpointing=again), GUIDE_PACK, parameters,
                      trainable, count, device.name, device) for again in (False, True)]
    return (tries[0], False) if tries[0].fits or not tries[1].fits else (tries[1], True)


def _cell(found: tuple[Forecast, bool]) -> str:
    forecast, again = found
    memory = f"{sum(forecast.memory_gib.values()):.0f} GiB"
    if not forecast.fits:
        return f"no, {memory}"
    time_and_price = f"{(forecast.seconds or 0) / 60:.0f} min, ${forecast.usd:.2f}"
    return f"{time_and_price}, {memory} {forecast.parallelism}{' ac' if again else ''}"


def filled(text: str) -> str:
    """The text with its tables made anew."""
    tables = {"parameters": parameters, "settings": settings, "inputs": inputs, "forecasts": forecasts}
    return MARKED.sub(lambda mark: mark[1] + tables[mark[2]]() + mark[3], text)


def _values(field: dataclasses.Field[object]) -> str:
    kind = FIELD_TYPES[field.name]
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    return range_of(field) or {bool: "true, false", str: "text"}.get(kind, str(kind.__name__))


def _code(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if str(value) else "empty"


if __name__ == "__main__":
    for page in PAGES:
        write_atomic(page, filled(page.read_text(encoding="utf-8")))
