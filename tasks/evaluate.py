"""How good is it? Held-out loss and the task type's scores of the tuned model, beside its base and a baseline.

In:   the trained weights, held-out rows and packs     Out: evaluations/<key>/answers.jsonl
Greedy answers by tasks/distributed/generate.py, with the same decoding that the predictor uses.
The gate compares with the base: a version that is significantly worse is not deployed.
Dies half-way: nothing is in the store; run it again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from prefect.logging import get_run_logger

from infra.crashpoints import crashpoint
from infra.errors import DataError, shown
from infra.files import digest_of
from infra.records import METRICS, Base, Evaluation, Pack, RowKind, Scores, Split, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store, scratch_folder
from tasks.distributed.contract import VALIDATION_PROMPT, GenerateJob
from tasks.launcher.gpu_slots import hold
from tasks.launcher.jobs import ranks_of, run_child, settled
from tasks.runs.retries import HOUR_S, found_done, step
from tasks.scoring import metrics
from tasks.scoring.bootstrap import Floats
from tasks.scoring.rouge import lead, score_rows, summarize
from tasks.ui import reports

FORMAT = 1
"""Raised when the same weights would be scored differently."""
SHOWN_ROWS = 5
LOSS_TOLERANCE = 0.01
"""Share by which the held-out loss may exceed the base's before a text-only version is refused."""


def refuse_unscorable(store: Store, spec: TrainingSpec, split: Split) -> None:
    """Refuse a task type that these rows cannot be scored by, before anything is trained. Raises DataError."""
    if split.kind == "text" and spec.task_type not in ("auto", "style"):
        raise DataError(f"task_type is {spec.task_type} and the rows are of the kind text", where="train_data",
                        allowed="prompt or messages rows", fix="Use task_type auto or style for text rows.")
    if spec.task_type == "extraction":
        with (store.fetch(split.folder) / "validation.jsonl").open(encoding="utf-8", newline="\n") as file:
            for line in islice(file, spec.num_evaluation_samples):
                reference = prompt_and_reference(split.kind, json.loads(line))[1]
                if metrics.fields_of(reference) is None:
                    raise DataError(f"task_type is extraction and a held-out answer is {shown(reference)}",
                                    allowed="JSON", fix="Write the fields as a JSON object, or use another task_type.")


def evaluate(
    settings: Settings, store: Store, spec: TrainingSpec, trained: Trained, split: Split, pack: Pack, base: Base,
) -> Evaluation:
    """Answer, score, judge."""
    rows = store.fetch(split.folder) / "validation.jsonl"
    with work_folder(settings) as work:
        job = GenerateJob(
            out=str(work), spec=settled(spec).to_json(), base=base.path,
            tuned=str(store.fetch(trained.folder) / "model"), packs=str(store.fetch(pack.folder)), rows=str(rows),
            kind=split.kind, separator=split.separator, context_tokens=base.context_tokens,
            row_losses=spec.task_type in metrics.BY_LOSS)
        result = run_child(settings, job, "tasks.distributed.generate", ranks=ranks_of(spec.num_ranks))
        answers = {name: read_answers(work, name) for name in ("tuned", "base")}
        losses = {name: read_losses(work, name) for name in ("tuned", "base")}
    labels = labels_of(rows.with_name("train.jsonl"), split.kind) if spec.task_type == "classification" else Counter()
    table = list(compared(rows, split, spec, answers, labels)) if split.kind != "text" else []
    by_rouge = spec.task_type in metrics.BY_ROUGE
    rouge = score(table) if by_rouge else {}
    scores = {} if by_rouge else metrics.scored(spec.task_type, table, losses, labels)
    passed, verdict = judge_version(rouge or scores, result["loss"], spec, held_out=split.validation_rows)
    with store.draft() as draft:
        with (draft.path / "answers.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        key = _key(spec, trained, split)
        evaluation = Evaluation(
            folder=f"evaluations/{key[:32]}", rouge=rouge, loss=result["loss"], passed=passed, verdict=verdict,
            samples=len(losses["tuned"]) if spec.task_type == "style" else len(table), examples=table[:SHOWN_ROWS],
            validation_answer=answers["tuned"].get(VALIDATION_PROMPT, ""), scores=scores,
            confusions=metrics.confusions(table, labels) if labels else [])
        crashpoint("evaluate.before_commit")
        draft.commit(evaluation.folder, evaluation.to_json())
    return evaluation


def find_evaluation(store: Store, spec: TrainingSpec, trained: Trained, split: Split) -> Evaluation | None:
    """The evaluation made earlier of the same weights, if it still verifies."""
    manifest = store.find(f"evaluations/{_key(spec, trained, split)[:32]}")
    found = Evaluation.kept(manifest.record if manifest else None)
    if found is None:
        return None
    passed, verdict = judge_version(found.rouge or found.scores, found.loss, spec, held_out=split.validation_rows)
    return replace(found, passed=passed, verdict=verdict)


def read_answers(work: Path, model: str) -> dict[int, str]:
    """Answers of all ranks by row number."""
    lines = (line for path in sorted(work.glob(f"answers-{model}-*.jsonl")) for line in path.open(encoding="utf-8"))
    return {row["row"]: row["text"] for row in map(json.loads, lines)}


def read_losses(work: Path, model: str) -> Floats:
    """losses_N3 of all ranks in the rows' order: nats, labelled tokens, their bytes."""
    lines = (line for path in work.glob(f"losses-{model}-*.jsonl") for line in path.open(encoding="utf-8"))
    rows = sorted(map(json.loads, lines), key=lambda row: row["row"])
    return np.array([[row["nats"], row["tokens"], row["bytes"]] for row in rows], np.float64).reshape(-1, 3)


def prompt_and_reference(kind: RowKind, row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and reference of a row; of a conversation, all before the assistant's last message, and that."""
    if kind == "prompt":
        return row["prompt"], row["completion"]
    last = max(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
    prompt = "\n".join(f"{m['role']}: {m['content']}" for m in row["messages"][:last])
    return prompt, row["messages"][last]["content"]


def labels_of(rows: Path, kind: RowKind) -> Counter[str]:
    """The labels of the training rows, with their number."""
    with rows.open(encoding="utf-8", newline="\n") as file:
        return Counter(metrics.label_of(prompt_and_reference(kind, json.loads(line))[1]) for line in file)


def compared(
    rows: Path, split: Split, spec: TrainingSpec, answers: dict[str, dict[int, str]], labels: Counter[str],
) -> Iterator[dict[str, str]]:
    """Prompt, reference and every model's answer, row by row."""
    with rows.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(islice(file, spec.num_evaluation_samples)):
            prompt, reference = prompt_and_reference(split.kind, json.loads(line))
            found = {
                "prompt": prompt, "reference": reference.strip(), "tuned": answers["tuned"][number].strip(),
                "base": answers["base"][number].strip()}
            if spec.task_type in metrics.BY_ROUGE:
                found["lead3"] = lead(prompt)
            if labels:
                found[metrics.MOST_FREQUENT] = labels.most_common(1)[0][0]
            yield found


def score(table: list[dict[str, str]]) -> dict[str, dict[str, list[float]]]:
    """The ROUGE table: [low, mean, high] for each model and metric; empty without rows."""
    if not table:
        return {}
    references = [row["reference"] for row in table]
    return {
        model: as_lists(summarize(score_rows(references, [row[model] for row in table])))
        for model in ("tuned", "base", "lead3")
    }


def as_lists(scores: Scores) -> dict[str, list[float]]:
    """Rounded for reading; six digits."""
    return {metric: [round(value, 6) for value in getattr(scores, metric)] for metric in METRICS}


def judge_version(
    scores: dict[str, dict[str, list[float]]], loss: dict[str, float], spec: TrainingSpec, *, held_out: int,
) -> tuple[bool, str]:
    """Pass or fail by the task type's first metric, with the reason in one sentence."""
    if scores:
        metric = metrics.PRIMARY[spec.task_type]
        low, mean, high = scores["tuned"][metric]
        base_low, base_mean, base_high = scores["base"][metric]
        if metric in metrics.LOWER_IS_BETTER:  # few packs make an interval too narrow
            worse = low > base_high and mean > base_mean * (1 + LOSS_TOLERANCE)
        else:
            worse = high < base_low
        reason = f"{metrics.NAMES[metric]} {mean:.3f} ({low:.3f} to {high:.3f}) against the base's {base_mean:.3f}"
    else:
        worse = loss["tuned"] > loss["base"] * (1 + LOSS_TOLERANCE)
        reason = f"held-out loss {loss['tuned']:.4f} against the base's {loss['base']:.4f}"
    if not held_out:
        return True, "Not judged: there are no held-out rows."
    if not np.isfinite(list(loss.values())).all():
        worse, reason = True, f"the held-out loss is {loss['tuned']}"
    if spec.gate == "off":
        return True, f"Not gated: {reason}."
    return not worse, f"{'Significantly worse than the base' if worse else 'Passed'}: {reason}."


def work_folder(settings: Settings) -> AbstractContextManager[Path]:
    """A folder of this machine that is gone afterwards, or when the next one is made if this process is killed."""
    return scratch_folder(settings.home_path / "work")


def _key(spec: TrainingSpec, trained: Trained, split: Split) -> str:
    knobs = {name: value for name, value in spec.numbers("scores").items() if name not in ("gate", "run_validation")}
    if spec.task_type == "auto":  # what was evaluated before there were task types is found again
        del knobs["task_type"]
    return digest_of([FORMAT, knobs, trained.digest, split.digest])


@step("scorable", timeout_s=HOUR_S)
def scorable_task(spec: TrainingSpec, split: Split, subject: str) -> None:
    """Refuse a task type that the rows cannot be scored by, before anything is trained."""
    refuse_unscorable(Store(Settings()), spec, split)


@step("evaluate", timeout_s=24 * HOUR_S)
def evaluate_task(
    spec: TrainingSpec, trained: Trained, split: Split, pack: Pack, base: Base, subject: str,
) -> Evaluation:
    """Score the trained model; returns the Evaluation."""
    settings = Settings()
    store = Store(settings)
    found = find_evaluation(store, spec, trained, split)
    if found is not None:
        say(found)
        return found_done(found)
    with hold(settings, ranks_of(spec.num_ranks)):
        evaluation = evaluate(settings, store, spec, trained, split, pack, base)
    say(evaluation)
    return evaluation


def say(evaluation: Evaluation) -> None:
    """Tell the scores in the run's log."""
    for line in reports.scores(evaluation):
        get_run_logger().info("%s", line)
