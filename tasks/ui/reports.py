"""What a run shows in the Prefect UI, as Markdown, a table and links. Pure text first, artifacts last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger

from infra.models.registry import Registry, run_page_of, version_page
from infra.records import METRICS, Deployment, Evaluation, Pack, PackCounts, Split, Trained, Version
from infra.settings import Settings
from infra.storage.https import without_secrets
from tasks.launcher.forecast import Forecast
from tasks.ui.artifacts import put
from tasks.ui.charts import bars, picture_of
from tasks.ui.progress import if_it_can

CELL_CHARACTERS = 400
TOKENS = {
    "rouge-score": "the words of rouge-score: runs of ASCII letters and digits, stemmed (tokenizer `rouge-score`)",
    "unicode": "words of every script, and characters where a script puts no spaces between words, because rouge-score "
               "sees ASCII letters and digits only (tokenizer `unicode`)"}
AS_TEXT = str.maketrans({
    "\n": "<br>", "\r": "<br>", "<": "&lt;", "&": "&amp;", **{sign: f"&#{ord(sign)};" for sign in "|`*_[]~\\"}})
"""What stands in Markdown for signs that could be read as markup there."""


def data_report(split: Split, pack: Pack) -> str:
    """Rows, tokens and what was cut; what was found in the data; ten examples with what is learned of them."""
    def line(name: str, counts: PackCounts) -> str:
        return (f"| {name} | {counts.examples} | {counts.rows} | {counts.tokens} | {counts.labelled} | "
                f"{counts.longest} | {counts.truncated} ({counts.lost} tokens) | {counts.split} | {counts.fill:.2%} |")
    return "\n".join([
        f"## Data: {split.train_rows} training and {split.validation_rows} held-out rows ({split.kind})", "",
        f"Repeated prompts: {split.duplicates}. Held-out prompts that also stand in the training rows: {split.leaks}. "
        f"Between prompt and completion: {'a line break' if split.separator else 'nothing'}. "
        f"Left out by `drop`: {split.dropped}{f', in {split.folder}/dropped.jsonl' if split.dropped else ''}.", "",
        f"| | examples | rows of {pack.chunk_tokens} | tokens | learned | longest | cut | split | fill |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|", line("train", pack.train), line("held out", pack.validation), "",
        "How long the examples are: the picture `data-lengths`.", "", *_findings(split, pack), "", *_samples(pack)])


def _findings(split: Split, pack: Pack) -> list[str]:
    """What was noted while judging and tokenising; an earlier release noted nothing."""
    findings = [*split.findings, *pack.findings]
    if not findings:
        if not split.compared:
            return []  # a split of an earlier release: nothing else was looked for
        return [f"Nothing else was found ({split.compared} rows looked at for near duplicates)."]
    return [f"Found in the data ({split.compared} rows looked at for near duplicates). The parameter `drop` leaves "
            "copies, leaks or all doubtful rows out:", "",
            "| finding | count | where |", "|---|--:|---|",
            *(f"| {_cell(one.what)} | {one.count} | {_cell(', '.join(one.first))}"
              f"{', ...' if one.count > len(one.first) else ''} |" for one in findings)]


def _samples(pack: Pack) -> list[str]:
    """The examples as the model sees them."""
    lines = [f"{len(pack.samples)} of the training rows as the model sees them:", "", "| | | text |", "|--:|---|---|"]
    for number, sample in enumerate(pack.samples, start=1):
        for i, run in enumerate(sample["runs"]):
            head = f"{number}: {sample['learned']} of {sample['tokens']} tokens learned" if i == 0 else ""
            lines.append(f"| {head} | {'learned' if run['learned'] else 'read'} | {_cell(run['text'])} |")
        if sample["more"]:
            lines.append(f"| | | and {sample['more']} more pieces |")
    return lines


def forecast_report(
    forecast: Forecast, trained: Trained | None = None, times: Mapping[str, float] | None = None,
) -> str:
    """Steps, memory by parts, time and price of each step; the actual figures beside them once they are known."""
    actual = forecast.spent(trained, times) if trained else {}
    what = " and what it was" if trained else ""
    if trained and trained.planned_steps:
        what += f", finished after {trained.steps} of {trained.planned_steps} steps"
    title = f"Forecast{what}: {forecast.ranks} x {forecast.device}"
    losses = trained.curve if trained else {}
    return "\n".join([
        f"## {title}", "", "| | forecast | actual |", "|---|---|---|",
        *(f"| {name} | {line} | {actual.get(name, '')} |" for name, line in forecast.lines().items()),
        *(f"| {name.replace('_', ' ')} | | {value:.6g} |" for name, value in losses.items()), "",
        "Prices and peak rates: `infra/hardware.toml`; put your own into `<home>/hardware.toml`."])


def rouge_report(evaluation: Evaluation) -> str:
    """Whether the version is good enough, the table of scores with intervals, and the losses."""
    lines = ["## Evaluation", "", evaluation.verdict, "", *_comparisons(evaluation)]
    if evaluation.rouge:
        lines += [f"ROUGE F-measure with 95 % intervals over {evaluation.samples} held-out rows:", "",
                  "| | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
        lines += [f"| {model} | " + " | ".join(_interval(scores[m]) for m in METRICS) + " |"
                  for model, scores in evaluation.rouge.items()]
    if evaluation.scores:
        names = list(evaluation.scores["tuned"])
        lines += [f"Scores with 95 % intervals over {evaluation.samples} held-out rows (losses: over all; with "
                  "pack_sequences over packs):", "",
                  "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        lines += [f"| {model} | " + " | ".join(_interval(scores[name]) for name in names) + " |"
                  for model, scores in evaluation.scores.items()]
    if evaluation.tokenizer:
        lines += ["", f"ROUGE counts {TOKENS[evaluation.tokenizer]}."]
    if evaluation.confusions:
        lines += ["", "The tuned model's most frequent mistakes:", "", "| label | answer | rows |", "|---|---|--:|"]
        lines += [f"| {_cell(str(label))} | {_cell(str(answer)) or 'no label'} | {rows} |"
                  for label, answer, rows in evaluation.confusions]
    lines += ["", "Held-out loss (nats per token): "
              + ", ".join(f"{model} {_loss(loss)}" for model, loss in evaluation.loss.items())]
    return "\n".join(lines)


def samples_report(evaluation: Evaluation) -> str:
    """Answers of the tuned model beside the reference and the base's."""
    lines = [f"## Answers to the first {len(evaluation.examples)} held-out prompts"]
    if evaluation.validation_answer:
        lines += ["", f"Answer to validation_prompt: {_cell(evaluation.validation_answer)}"]
    if evaluation.examples:
        lines += ["", "| tuned | reference | base | prompt |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(_cell(row[k]) for k in ("tuned", "reference", "base", "prompt")) + " |"
                  for row in evaluation.examples]
    return "\n".join(lines)


def evaluation_table(evaluation: Evaluation) -> list[dict[str, str]]:
    """A row for each model, a column for each metric, with 95 % intervals."""
    table, rows = evaluation.rouge or evaluation.scores, []
    for model in table or evaluation.loss:
        found = {name: _interval(values, "") for name, values in table.get(model, {}).items()}
        if model in evaluation.loss and "loss" not in found:
            found["held-out loss"] = _loss(evaluation.loss[model])
        rows.append({"model": model, **found})
    return rows


def _comparisons(evaluation: Evaluation) -> list[str]:
    """The tuned model beside each other one on the same rows; an earlier release compared nothing."""
    if not evaluation.compared:
        return []
    digits = 4 if next(iter(evaluation.compared.values())).metric == "loss" else 3
    lines = ["The tuned model beside others on the same held-out rows (paired bootstrap):", "",
             "| beside | | metric | difference | rows won | lost | tied | smallest difference that is mostly seen |",
             "|---|---|---|---|--:|--:|--:|--:|"]
    for name, one in evaluation.compared.items():
        low, difference, high = (f"{edge:.{digits}f}" for edge in one.difference)
        least = "" if one.least is None else f"{one.least:.{digits}f}"
        lines.append(f"| {name} | {one.outcome} | {one.metric} | **{difference}** ({low} to {high}) | {one.won} | "
                     f"{one.lost} | {one.tied} | {least} |")
    return [*lines, ""]


def scores(evaluation: Evaluation) -> list[str]:
    """A line for each model, with 95 % intervals, and the verdict: what the run's log tells. ROUGE-Lsum, which is
    ROUGE-L for an answer of one line, stands in the report only."""
    lines, table = [], evaluation.rouge or evaluation.scores
    for model in table or evaluation.loss:
        found = table.get(model, {})
        cells = [f"{name} {_interval(values, '')}" for name, values in found.items() if name != "rougeLsum"]
        if model in evaluation.loss and "loss" not in found:
            cells.append(f"held-out loss {_loss(evaluation.loss[model])}")
        lines.append(f"{model}: {', '.join(cells)}")
    return [*lines, evaluation.verdict]


def show_report(key: str, markdown: str) -> None:
    """Put a report on the run's Artifacts page, in place of an earlier one of that key."""
    title = markdown.splitlines()[0].lstrip("# ")
    if_it_can(lambda: put(key, "markdown", markdown, title))


def show_evaluation(evaluation: Evaluation) -> None:
    """Put verdict, scores and answers on the run's Artifacts page."""
    show_report("verdict", rouge_report(evaluation))
    about = f"Scores with 95 % intervals over {evaluation.samples} held-out rows"
    if_it_can(lambda: put("evaluation", "table", json.dumps(evaluation_table(evaluation)), about))
    if evaluation.examples or evaluation.validation_answer:
        show_report("samples", samples_report(evaluation))


def show_lengths(pack: Pack) -> None:
    """Put the histogram of lengths on the run's Artifacts page; packs of an earlier release have none."""
    if pack.lengths:
        about = ("Tokens per example before cutting: training rows blue, held-out rows orange, as shares; "
                 f"dashed: chunk_size, {pack.chunk_tokens} tokens")
        if_it_can(lambda: put("data-lengths", "image", picture_of(bars(pack)), about))


def tag(**about: str) -> None:
    """Tags of the run by which the UI finds it, such as model:llama; a colon and a value each."""
    run = runtime.flow_run.id
    if run:
        others = (tag for tag in runtime.flow_run.tags if not tag.startswith("training:"))
        tags = {*others, *(f"{name}:{value}" for name, value in about.items() if value)}
        if_it_can(lambda: _tag(UUID(run), tags))


def _tag(run: UUID, tags: set[str]) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(run, tags=sorted(tags))


def show_links(settings: Settings, version: Version, deployment: Deployment) -> None:
    """Where to ask the version, its page and run in MLflow, and where its files lie."""
    if not deployment.url:
        get_run_logger().warning("registered, not deployed: %s", deployment.reason)
    in_mlflow: list[str] = []
    if settings.tracking_uri.startswith("http"):
        mlflow = without_secrets(settings.tracking_uri).rstrip("/")
        in_mlflow = [f"- [In MLflow's registry]({version_page(mlflow, version)}): lineage, files, aliases",
                     *filter(None, [if_it_can(lambda: _run_in(settings, version, mlflow))])]
    asked = (f"- [Playground]({deployment.url}/?model={version.destination}): ask it" if deployment.url
             else f"- Not deployed: {deployment.reason}.")
    show_report("links", "\n".join([
        f"## {version.destination} version {version.number} ({version.id[:12]})", "", asked, *in_mlflow,
        f"- {training_place(settings, version)}"]))


def _run_in(settings: Settings, version: Version, mlflow: str) -> str:
    experiment, run = Registry(settings).run_of(version.destination, version.number)
    return f"- [Its run in MLflow]({run_page_of(mlflow, experiment, run)}): parameters and metrics"


def training_place(settings: Settings, version: Version) -> str:
    """Where weights and events.jsonl of the training lie: an s3:// address, or a folder that no browser opens."""
    root = settings.store_root
    where = "In the store" if root.startswith("s3://") else "In the store, a folder"
    return (f"{where}: `{root}/trainings/{version.training_id}` has the weights and `events.jsonl`, "
            f"`{root}/{version.folder}` the version's files")


def _loss(value: float) -> str:
    return "not computed" if math.isnan(value) else f"{value:.4f}"


def _interval(values: list[float], marks: str = "**") -> str:
    low, mean, high = values
    return f"{marks}{mean:.3f}{marks} ({low:.3f} to {high:.3f})"


def _cell(text: str) -> str:
    """Text that cannot break a table or become markup: an image in a row would be fetched by who looks at it."""
    cut = text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."
    return cut.replace("\r\n", "\n").translate(AS_TEXT)
