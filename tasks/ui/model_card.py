"""The model card of a version: README.md with the metadata that the Hugging Face hub reads.

In:   the version's lineage (tasks/register.py), how its prompts end     Out: the text of README.md
Names no path of this machine, so that the card may be published as it is. Its scores are those of the held-out rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from infra.records import RowKind

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LOSS = "loss"
METRIC_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum", "f1": "F1"}
TASK = "text-generation"
Form = Literal["lora", "full", "merged"]
"""An adapter, all weights that were trained, an adapter merged into its base."""
KNOBS = ("peft_method", "lora_rank", "lora_alpha", "lora_targets", "learning_rate", "lr_schedule", "num_train_epochs",
         "train_batch_size", "chunk_size", "pack_sequences", "precision", "seed")
ADAPTER_KNOBS = ("lora_rank", "lora_alpha", "lora_targets")
LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # this folder, or its name on the hub
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""
LOAD_BESIDE = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

folder = "."  # this folder, or its name on the hub
base = {auto}.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, folder)"""
"""Of a base that peft has no class for."""
LOAD_WHOLE = """from transformers import {auto}, AutoTokenizer

folder = "."  # this folder, or its name on the hub
model = {auto}.from_pretrained(folder)"""
CAUSAL = "AutoModelForCausalLM"
ASK = """tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer({prompt}, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
CHAT = """tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Your question"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def model_card(lineage: dict[str, Any], form: Form, kind: RowKind, separator: str) -> str:
    """README.md of a version's files in that form. `kind`, `separator`: of the rows that it was trained on."""
    from huggingface_hub import ModelCardData

    base = {"revision": "", **lineage["base"]}  # a version of an earlier release has none
    name, adapter = lineage["spec"]["destination"], form == "lora"
    scores = scores_of(lineage)
    data = ModelCardData(
        base_model=base["name"] if base["revision"] else None, library_name="peft" if adapter else "transformers",
        pipeline_tag=TASK, model_name=name, tags=["anneal", "full-fine-tuning" if form == "full" else "lora"],
        eval_results=results(scores, lineage["data_digest"]) or None)
    if base["revision"]:
        data.base_model_relation = "adapter" if adapter else "finetune"
    what = {"lora": "A LoRA adapter for {}", "full": "All weights of {}, fine-tuned",
            "merged": "A LoRA adapter merged into {}"}[form].format(_base_name(base))
    auto = lineage.get("auto_class", CAUSAL)
    prompt = "" if kind == "messages" else _prompt(separator if kind == "prompt" else "")
    return "\n".join([
        "---", data.to_yaml().strip(), "---", "", f"# {name}", "", f"{what}, trained with Anneal.", "",
        *_origin(lineage, base, form), "", *_table(scores, lineage), "", *_usage(name, base, form, prompt, auto), ""])


def scores_of(lineage: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """{model: {metric: [low, value, high]}}; the held-out loss has no interval: [value]."""
    metrics = lineage["metrics"]
    found = {model: dict(values) for model, values in (metrics["rouge"] or metrics.get("scores", {})).items()}
    for model, loss in metrics["loss"].items():
        found.setdefault(model, {}).setdefault(LOSS, [loss])
    return found


def results(scores: dict[str, dict[str, list[float]]], digest: str) -> list[EvalResult]:
    """The tuned model's scores in the hub's form; an interval stands in the metric's name, for which there is room."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(task_type=TASK, dataset_type="held-out", dataset_name=f"held-out rows of data {digest[:12]}",
                   metric_type="rouge" if metric.startswith("rouge") else metric, metric_value=_value(values),
                   metric_name=_name(metric) + _interval(values))
        for metric, values in scores.get("tuned", {}).items()]


def _value(values: list[float]) -> float:
    return round(values[1] if len(values) == 3 else values[0], 6)


def _interval(values: list[float]) -> str:
    return f" (95 % interval {values[0]:.4f} to {values[2]:.4f})" if len(values) == 3 else ""


def _name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def _base_name(base: dict[str, Any]) -> str:
    name = base["name"]
    return f"[{name}](https://huggingface.co/{name})" if base["revision"] else f"`{name}`"


def _origin(lineage: dict[str, Any], base: dict[str, Any], form: Form) -> list[str]:
    """What it came from."""
    rows, spec, parent = lineage["rows"], lineage["spec"], lineage.get("base_version")
    commit = f", commit `{base['revision']}`" if base["revision"] else ""
    asked = f" of {lineage['planned_steps']}" if "planned_steps" in lineage else ""  # a person finished it
    knobs = [f"{name} {spec[name]}" for name in KNOBS if name in spec and (form != "full" or name not in ADAPTER_KNOBS)]
    return [
        "| | |", "|---|---|", f"| base model | {_base_name(base)}{commit}, sha256 `{base['digest']}` |",
        *([f"| continued from | {parent['name']}, id `{parent['id']}` |"] if parent else []),
        f"| data | sha256 `{lineage['data_digest']}`, {rows['train']} training rows, {rows['validation']} held out |",
        f"| training | {lineage['steps']}{asked} steps: {', '.join(knobs)} |", f"| code | {lineage['code_revision']} |"]


def _table(scores: dict[str, dict[str, list[float]]], lineage: dict[str, Any]) -> list[str]:
    models = list(scores)
    metrics = list(dict.fromkeys(metric for values in scores.values() for metric in values))
    if not metrics:
        return ["Nothing was held out, so there are no scores."]

    def cell(values: list[float] | None) -> str:
        return "" if values is None else f"{_value(values):.4f}{_interval(values)}"

    return ["## Scores on held-out rows", "", f"| | {' | '.join(models)} |", f"|---|{'---|' * len(models)}",
            *(f"| {_name(metric)} | {' | '.join(cell(scores[model].get(metric)) for model in models)} |"
              for metric in metrics), "",
            f"tuned is this model, base the one that it was trained on. {lineage['rows']['validation']} rows were held "
            "out; the loss is in nats per labelled token."]


def _prompt(separator: str) -> str:
    return f'"Your prompt" + {separator!r}' if separator else '"Your prompt"'


def _usage(name: str, base: dict[str, Any], form: Form, prompt: str, auto: str) -> list[str]:
    """How to load and ask it. `prompt`: an expression; empty: through the chat template."""
    ask = ASK.replace("{prompt}", prompt) if prompt else CHAT
    load = LOAD_WHOLE.format(auto=auto)
    if form == "lora":
        load = LOAD_ADAPTER if auto == CAUSAL else LOAD_BESIDE.format(
            auto=auto, base=base["name"] if base["revision"] else "/where/the/base/model/lies")
    lines = ["## Use", "", "```python", load, ask, "```", ""]
    if form == "lora":
        if not base["revision"]:
            lines += ["The base model is not from the hub. If `adapter_config.json` names a folder, it is the one "
                      "where the base lies on the machine of the training. Elsewhere, load that base yourself, "
                      "then `PeftModel.from_pretrained(base_model, folder)`.", ""]
        lines += ["The adapter alone is stored, in float32. `anneal export --format merged` writes it with its base as "
                  "one model that transformers loads.", ""]
    else:
        lines += ["In Anneal's store the weights are " + (
            "the float32 master weights of the training" if form == "full" else "an adapter, in float32")
            + "; `config.json` here says in which number format these are.", ""]
    return [*lines, "With Anneal:", "", "```", f'anneal predict {name} "Your prompt"', "```"]
