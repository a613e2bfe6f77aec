"""Answer held-out prompts with the tuned model and its base: the child process of evaluate.

In:   job.json (GenerateJob): base, trained weights, held-out rows and packs
Out:  answers-<model>-<rank>.jsonl with {"row", "text"}; result.json with the losses last
      with row_losses: losses-<model>-<rank>.jsonl with {"row", "nats", "tokens", "bytes"} of the labelled tokens
Greedy, in batches, the rows shared out over the ranks. Dies half-way: run it again.
Run alone: python -m tasks.distributed.torchrun --standalone --nproc-per-node=2 -m tasks.distributed.generate job.json
"""

from __future__ import annotations

if __name__ == "__main__":
    from infra.parent_death import be_rank

    be_rank()  # before the slow imports

import contextlib
import gc
import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from peft import PeftModel
from transformers import PreTrainedModel

from infra.crashpoints import crashpoint
from infra.spec import TrainingSpec
from tasks.distributed.batches import Batch
from tasks.distributed.codec import Codec
from tasks.distributed.contract import (
    ANSWERS_FILE,
    LOSSES_FILE,
    VALIDATION_PROMPT,
    GenerateJob,
    main_of,
    share_name,
)
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.events import Events
from tasks.distributed.examples import flatten, question_in, read_rows, shortened, truncate
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import dtype_of, load_base, load_tokenizer, load_tuned, precision
from tasks.distributed.packs import PackedRows
from tasks.distributed.preflight import prove
from tasks.distributed.process_group import Group, group
from tasks.distributed.stops import stop_ids
from tasks.distributed.validation import held_out_loss

BATCH_ROWS = 16

Question = tuple[int, list[int]]
"""(row number, token ids)"""


def generate(job: GenerateJob) -> int:
    """Answers and held-out losses of the tuned model and the base."""
    spec = TrainingSpec.from_json(job.spec)
    with group() as ranks:
        codec = Codec(load_tokenizer(Path(job.base)), templated=spec.prompt_format == "templated")
        stops = stop_ids(codec, Path(job.base))
        asked = questions(codec, job, spec)
        mine = sorted(asked, key=lambda question: len(question[1]))[ranks.rank :: ranks.world]
        events = Events(Path(job.out), len(asked), muted=not ranks.is_first)
        losses = {}
        for name in job.models:
            model = load(job, spec, name, ranks)
            with adapters_off(model, name):
                path = Path(job.out) / share_name(ANSWERS_FILE, name, ranks.rank)
                answer_all(model, codec, mine, spec.max_new_tokens, path, events, stops)
                losses[name] = loss_of(model, job, spec, ranks, codec, name)
            events.emit("evaluated", model=name, loss=losses[name])
            del model
            gc.collect()
        ranks.barrier()
        if ranks.is_first:
            cut = sum(len(ids) >= longest_prompt(job, spec) for _, ids in asked)
            job.finish({"loss": losses, "cut_prompts": cut, "stop_ids": sorted(stops)})
    return 0


def longest_prompt(job: GenerateJob, spec: TrainingSpec) -> int:
    """Longest prompt in tokens that leaves room for the answer."""
    return max(1, job.context_tokens - spec.max_new_tokens)


def questions(codec: Codec, job: GenerateJob, spec: TrainingSpec) -> list[Question]:
    """Prompts of the first held-out rows, over-long ones cut on the left as in training."""
    found, longest = list[Question](), longest_prompt(job, spec)
    if job.kind != "text":
        rows = islice(read_rows(Path(job.rows)), spec.num_evaluation_samples)
        found = [(i, prompt_ids(codec, job, row, longest)) for i, row in enumerate(rows)]
    if spec.validation_prompt:
        found.append((VALIDATION_PROMPT, codec.prompt(spec.validation_prompt)))
    begin = len(codec.bos)
    return [(i, ids if len(ids) <= longest else ids[:begin] + ids[begin - longest :]) for i, ids in found]


def prompt_ids(codec: Codec, job: GenerateJob, row: dict[str, Any], longest: int) -> list[int]:
    """The prompt of a held-out row; of a conversation that is too long the oldest exchanges are left out."""
    ids, _ = codec.question(job.kind, row, job.separator)
    if job.kind != "messages" or len(ids) <= longest:
        return ids
    segments = shortened(row, longest, codec.asked)
    begin, prompt = question_in(segments, job.kind, len(codec.bos))
    return [int(i) for i in truncate(*flatten(segments), longest, begin=begin, prompt=prompt)[0]]


def load(job: GenerateJob, spec: TrainingSpec, name: str, ranks: Group) -> PreTrainedModel | PeftModel:
    """The tuned model; an adapter's base is the same model with the adapter off."""
    dtype = dtype_of(spec.precision, ranks.device)
    if name == "base" and spec.peft_method == "full":
        return load_base(Path(job.base), dtype=dtype, device=ranks.device)
    return load_tuned(Path(job.base), Path(job.tuned), dtype=dtype, device=ranks.device)


def adapters_off(model: PreTrainedModel | PeftModel, name: str) -> contextlib.AbstractContextManager[Any]:
    """Within this context the model answers as `name`."""
    if name == "base" and isinstance(model, PeftModel):
        return model.disable_adapter()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def answer_all(
    model: PreTrainedModel | PeftModel, codec: Codec, mine: list[Question], max_new_tokens: int, path: Path,
    events: Events, stops: frozenset[int],
) -> None:
    """Greedy answers to this rank's questions, one JSON line each."""
    greedy = Sampling(max_new_tokens=max_new_tokens)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(mine), BATCH_ROWS):
            batch = mine[start : start + BATCH_ROWS]
            found = decode_all(model, [ids for _, ids in batch], [greedy] * len(batch), stop_ids=stops)
            for (row, _), answer in zip(batch, found, strict=True):
                file.write(json.dumps({"row": row, "text": codec.decode(answer)}) + "\n")
            crashpoint("evaluate.mid_generation")
            events.emit("answered", rows=start + len(batch))


def loss_of(
    model: PreTrainedModel | PeftModel, job: GenerateJob, spec: TrainingSpec, ranks: Group, codec: Codec, name: str,
) -> float:
    """Held-out loss by the trainer's own function; with row_losses row by row, each written down."""
    rows = PackedRows(Path(job.packs) / "validation")
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    dtype = dtype_of(spec.precision, ranks.device)
    size = 1 if job.row_losses else spec.validation_batch_size
    with (Path(job.out) / share_name(LOSSES_FILE, name, ranks.rank)).open("w", encoding="utf-8") as file:
        seen = partial(write_loss, file, codec) if job.row_losses else None
        loss = PackedLoss(causal)
        prove(loss, dtype, ranks.device)
        return held_out_loss(loss, rows, ranks, size, lambda: precision(dtype, ranks.device), seen)


def write_loss(file: TextIO, codec: Codec, row: int, batch: Batch, nats: float) -> None:
    """One row's loss, with the tokens that were to be predicted and the bytes of their text."""
    text = codec.decode(batch.labels_N.tolist())
    line = {"row": row, "nats": nats, "tokens": len(batch.labels_N), "bytes": len(text.encode())}
    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main_of(GenerateJob, generate)
