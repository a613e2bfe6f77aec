"""How good is it? Held-out loss and the task type's scores of the tuned model, beside its base and a baseline.

In:   the trained weights, held-out rows and packs     Out: evaluations/<key>/answers.jsonl
Greedy answers by tasks/distributed/generate.py, with the same decoding that the predictor uses; kept by
tasks/launcher/answers.py, so that no model answers the same rows twice.
Compared with base, baseline and champion by tasks/scoring/paired.py, judged by tasks/scoring/verdict.py.
Dies half-way: nothing is in the store; run it again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from prefect.logging import get_run_logger

from infra.crashpoints import crashpoint
from infra.errors import DataError, UserError, shown
from infra.files import digest_of
from infra.models.base_tokens import special_tokens_of
from infra.records import METRICS, Base, Comparison, Evaluation, Pack, RowKind, Scores, Split, Trained
from infra.settings import Settings
from infra.spec import PromptFormat, TrainingSpec
from infra.storage.store import Store, scratch_folder
from tasks.data.chat import said_by
from tasks.distributed.contract import ANSWERS_FILE, VALIDATION_PROMPT, rows_name
from tasks.launcher.answers import Answered, Asked, KeptAnswers
from tasks.launcher.champion import Champion, asked_of, find_champion, refuse_gate_without_champion
from tasks.launcher.gpu_slots import hold
from tasks.launcher.placement import Placement
from tasks.runs.retries import HOUR_S, found_done, step
from tasks.scoring import metrics
from tasks.scoring.bootstrap import Floats
from tasks.scoring.paired import compare
from tasks.scoring.rouge import lead, longest_turn, score_rows, summarize
from tasks.scoring.tokens import needs_unicode, tokenizer_for
from tasks.scoring.verdict import Standing, judge
from tasks.ui import reports

FORMAT: dict[PromptFormat, int] = {"plain": 1, "templated": 2}
"""Raised when the same weights would be scored differently."""
SHOWN_ROWS = 5
END_MARKS = re.compile(r"(\s*<[^<>\s]+>)+\s*$")
COMPARED = ("tuned", "base", "lead3", metrics.MOST_FREQUENT, "champion")
"""Whose answers are compared; the tuned model's with each other."""


def refuse_unscorable(store: Store, spec: TrainingSpec, split: Split, base: Base | None = None) -> None:
    """Refuse a task type that these rows cannot be scored by, before anything is trained. Without the base, any last
    tag of a templated answer counts as its end token. Raises DataError."""
    if split.kind == "text" and spec.task_type not in ("auto", "style"):
        raise DataError(f"task_type is {spec.task_type} and the rows are of the kind text", where="train_data",
                        allowed="prompt or messages rows", fix="Use task_type auto or style for text rows.")
    if spec.task_type == "extraction":
        marks = marks_of(spec, base) if base else END_MARKS if spec.prompt_format == "templated" else None
        with (store.fetch(split.folder) / rows_name("validation")).open(encoding="utf-8", newline="\n") as file:
            for line in islice(file, spec.num_evaluation_samples):
                reference = prompt_and_reference(split.kind, json.loads(line), marks)[1]
                if metrics.fields_of(reference) is None:
                    raise DataError(f"task_type is extraction and a held-out answer is {shown(reference)}",
                                    allowed="JSON", fix="Write the fields as a JSON object, or use another task_type.")


def evaluate(
    settings: Settings, store: Store, placement: Placement, trained: Trained, split: Split, pack: Pack, base: Base,
    answers: KeptAnswers | None = None,
) -> Evaluation:
    """Answer, score, compare with base and baseline, and judge by these alone."""
    spec, answers = placement.spec, answers or answers_for(settings, store, placement, split, pack)
    asked = models_of(store, trained, split, base, spec.prompt_format)
    answers.generate([one for one in asked.values() if answers.find(one) is None])
    found = {name: answers.kept(one) for name, one in asked.items()}
    folder = store.fetch(split.folder)
    rows, classifies = folder / rows_name("validation"), spec.task_type == "classification"
    marks = marks_of(spec, base)
    labels = labels_of(folder / rows_name("train"), split.kind, marks) if classifies else Counter()
    table = list(table_of(rows, split, spec, found, labels, marks)) if split.kind != "text" else []
    losses = {name: one.losses_N3 for name, one in found.items()}
    by_rouge = spec.task_type in metrics.BY_ROUGE
    rouge_rows = rows_by_rouge(table) if by_rouge else {}
    evaluation = judged(Evaluation(
        folder=f"evaluations/{_key(spec, trained, split)[:32]}", passed=True, verdict="",
        rouge={model: as_lists(summarize(values)) for model, values in rouge_rows.items()},
        loss={name: one.loss for name, one in found.items()}, examples=table[:SHOWN_ROWS],
        samples=len(losses["tuned"]) if spec.task_type == "style" else len(table),
        validation_answer=found["tuned"].texts.get(VALIDATION_PROMPT, ""), stop_ids=found["tuned"].stop_ids,
        scores={} if by_rouge else metrics.scored(spec.task_type, table, losses, labels),
        confusions=metrics.confusions(table, labels) if labels else [],
        tokenizer=tokenizer_for(row["reference"] for row in table) if by_rouge or spec.task_type == "chat" else "",
        compared=compared_with(metric_of(spec, split), table, losses, rouge_rows)), spec, split, None)
    with store.draft() as draft:
        with (draft.path / ANSWERS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        crashpoint("evaluate.before_commit")
        draft.commit(evaluation.folder, evaluation.to_json())
    return evaluation


def find_evaluation(store: Store, spec: TrainingSpec, trained: Trained, split: Split) -> Evaluation | None:
    """The evaluation made earlier of the same weights, if it still verifies, judged by its comparisons with base and
    baseline. An earlier release compared nothing, and saw no script but Latin: its answers are scored again."""
    manifest = store.find(f"evaluations/{_key(spec, trained, split)[:32]}")
    found = Evaluation.kept(manifest.record if manifest else None)
    if found is None:
        return None
    if not found.compared:
        metric = metric_of(spec, split)
        if metric == "loss" and split.validation_rows:
            return None  # the losses of single rows were not kept
        with (store.fetch(found.folder) / ANSWERS_FILE).open(encoding="utf-8") as file:
            table = list(map(json.loads, file))
        unseen = found.rouge and needs_unicode(row["reference"] for row in table)
        rouge_rows = rows_by_rouge(table) if unseen else {}
        if rouge_rows:
            rouge = {model: as_lists(summarize(values)) for model, values in rouge_rows.items()}
            found = replace(found, rouge=rouge, tokenizer="unicode")
        found = replace(found, compared=compared_with(metric, table, {}, rouge_rows))
    return judged(found, spec, split, None)


def beside_champion(
    settings: Settings, store: Store, spec: TrainingSpec, trained: Trained, split: Split, base: Base,
    answers: KeptAnswers, evaluation: Evaluation, champion: Champion | None,
) -> Evaluation:
    """The evaluation, compared with the champion too and judged by the gate.

    The champion's answers are those that were kept; where it never answered these rows, it does so once, unless the
    gate does not ask for it.
    """
    evaluation = replace(evaluation, champion=champion.version.number if champion else 0)
    if champion is None or champion.is_itself:
        standing = Standing(champion.version.number, is_itself=True) if champion else None
        return judged(evaluation, spec, split, standing)
    metric, number = metric_of(spec, split), champion.version.number
    try:
        asked = asked_of(settings, store, champion.version, split, base, by_loss=metric == "loss")
    except UserError as error:
        return judged(evaluation, spec, split, Standing(number, reason=error.found))
    both = {"tuned": models_of(store, trained, split, base, spec.prompt_format)["tuned"], "champion": asked}
    for one in both.values():
        if answers.find(one, whole=False) is None:
            if spec.gate in ("off", "not_worse_than_base"):
                return judged(evaluation, spec, split, None)
            answers.generate([one])
    found = {name: answers.kept(one, whole=False) for name, one in both.items()}
    rows = store.fetch(split.folder) / rows_name("validation")
    marks = marks_of(spec, base)
    table = list(table_of(rows, split, spec, found, Counter(), marks)) if split.kind != "text" else []
    compared = compared_with(metric, table, {name: one.losses_N3 for name, one in found.items()}, {})
    evaluation = replace(evaluation, compared={**evaluation.compared, **compared})
    return judged(evaluation, spec, split, Standing(number))


def answers_for(
    settings: Settings, store: Store, placement: Placement, split: Split, pack: Pack,
    slots: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> KeptAnswers:
    """The kept answers to these rows; with the losses of single rows where a score is made of them."""
    by_loss = placement.spec.task_type in metrics.BY_LOSS or split.kind == "text"
    return KeptAnswers(settings, store, placement, split, pack, row_losses=by_loss, slots=slots)


def models_of(
    store: Store, trained: Trained, split: Split, base: Base, prompt_format: PromptFormat = "plain",
) -> dict[str, Asked]:
    """Who is asked: the trained weights and their base."""
    tuned = store.fetch(trained.folder) / "model"
    digests = {"tuned": trained.digest, "base": base.digest}
    return {name: Asked(name=name, digest=digest, tuned=tuned, base=base, separator=split.separator,
                        prompt_format=prompt_format)
            for name, digest in digests.items()}


def metric_of(spec: TrainingSpec, split: Split) -> str:
    """The metric that models are compared by."""
    return "loss" if split.kind == "text" else metrics.PRIMARY[spec.task_type]


def compared_with(
    metric: str, table: list[dict[str, str]], losses: Mapping[str, Floats], rouge_rows: Mapping[str, Floats],
) -> dict[str, Comparison]:
    """The tuned model beside each other one whose answers, or losses row by row, are known."""
    names = list(losses) if metric == "loss" else [name for name in COMPARED if table and name in table[0]]
    references = [row["reference"] for row in table]
    parts = {name: metrics.parts_of(
        metric, references, [row.get(name, "") for row in table], losses.get(name, np.zeros((0, 3))),
        rouge_rows[name][:, METRICS.index("rougeL")] if name in rouge_rows else None) for name in names}
    return {name: compare(metric, parts["tuned"], parts[name], lower_is_better=metric in metrics.LOWER_IS_BETTER)
            for name in names if name != "tuned" and len(parts["tuned"])}


def judged(evaluation: Evaluation, spec: TrainingSpec, split: Split, champion: Standing | None) -> Evaluation:
    """With the gate's verdict."""
    passed, verdict = judge(evaluation, spec.gate, champion, held_out=split.validation_rows)
    return replace(evaluation, passed=passed, verdict=verdict)


def marks_of(spec: TrainingSpec, base: Base) -> re.Pattern[str] | None:
    """Finds the special tokens that a template wrote into the rows. Models answer without them: `</s>` and `<|im_end|>`
    are none of an answer's words, while `</b>` is."""
    return special_tokens_of(Path(base.path)) if spec.prompt_format == "templated" else None


def prompt_and_reference(kind: RowKind, row: dict[str, Any], marks: re.Pattern[str] | None = None) -> tuple[str, str]:
    """Prompt and reference of a row, without the marks; of a conversation, all before the last answer that is learned,
    and that."""
    if kind == "prompt":
        both = row["prompt"], row["completion"]
        return both if marks is None else (marks.sub("", both[0]), marks.sub("", both[1]))
    last = max(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant" and m.get("weight", 1))
    prompt = "\n".join(f"{m['role']}: {said_by(m)}" for m in row["messages"][:last])
    return prompt, said_by(row["messages"][last])


def labels_of(rows: Path, kind: RowKind, marks: re.Pattern[str] | None) -> Counter[str]:
    """The labels of the training rows, with their number."""
    with rows.open(encoding="utf-8", newline="\n") as file:
        return Counter(metrics.label_of(prompt_and_reference(kind, json.loads(line), marks)[1])
                       for line in file)


def table_of(
    rows: Path, split: Split, spec: TrainingSpec, answers: Mapping[str, Answered], labels: Counter[str],
    marks: re.Pattern[str] | None,
) -> Iterator[dict[str, str]]:
    """Prompt, reference, every model's answer and the baseline's, row by row."""
    with rows.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(islice(file, spec.num_evaluation_samples)):
            row = json.loads(line)
            prompt, reference = prompt_and_reference(split.kind, row, marks)
            found = {"prompt": prompt, "reference": reference.strip(),
                     **{name: one.texts[number].strip() for name, one in answers.items()}}
            if spec.task_type in metrics.BY_ROUGE and "champion" not in answers:
                found["lead3"] = lead(longest_turn(row["prompt"], marks) if marks else prompt)
            if labels:
                found[metrics.MOST_FREQUENT] = labels.most_common(1)[0][0]
            yield found


def rows_by_rouge(table: list[dict[str, str]]) -> dict[str, Floats]:
    """The ROUGE scores of each row and metric for each model; empty without rows."""
    references = [row["reference"] for row in table]
    return {model: score_rows(references, [row[model] for row in table])
            for model in ("tuned", "base", "lead3") if table}


def as_lists(scores: Scores) -> dict[str, list[float]]:
    """Rounded for reading; six digits."""
    return {metric: [round(value, 6) for value in getattr(scores, metric)] for metric in METRICS}


def work_folder(settings: Settings) -> AbstractContextManager[Path]:
    """A folder of this machine that is gone afterwards, or when the next one is made if this process is killed."""
    return scratch_folder(settings.home_path / "work")


def _key(spec: TrainingSpec, trained: Trained, split: Split) -> str:
    knobs = {name: value for name, value in spec.numbers("scores").items() if name not in ("gate", "run_validation")}
    if spec.task_type == "auto":  # what was evaluated before there were task types is found again
        del knobs["task_type"]
    return digest_of([FORMAT[spec.prompt_format], knobs, trained.digest, split.digest])


@step("scorable", timeout_s=HOUR_S)
def scorable_task(spec: TrainingSpec, split: Split, subject: str) -> None:
    """Refuse a task type that the rows cannot be scored by, or a gate without a champion, before training."""
    refuse_unscorable(Store(Settings()), spec, split)
    refuse_gate_without_champion(Settings(), spec)


@step("evaluate", timeout_s=24 * HOUR_S)
def evaluate_task(
    placement: Placement, trained: Trained, split: Split, pack: Pack, base: Base, subject: str,
) -> Evaluation:
    """Score the trained model; returns the Evaluation."""
    settings = Settings()
    store = Store(settings)
    spec = placement.spec
    answers = answers_for(settings, store, placement, split, pack, lambda: hold(settings, placement.ranks))
    champion = find_champion(settings, spec.destination, trained.training_id)
    found = find_evaluation(store, spec, trained, split)
    evaluation = found or evaluate(settings, store, placement, trained, split, pack, base, answers)
    evaluation = beside_champion(settings, store, spec, trained, split, base, answers, evaluation, champion)
    say(evaluation)
    return found_done(evaluation) if found else evaluation


def say(evaluation: Evaluation) -> None:
    """Tell the scores in the run's log."""
    for line in reports.scores(evaluation):
        get_run_logger().info("%s", line)
