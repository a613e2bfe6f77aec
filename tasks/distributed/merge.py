"""Merge an adapter into its base and prove it by logits: the child process of export. All weights that were trained
are only written anew, in the number format asked for.

In:   job.json (MergeJob): base, adapter, held-out rows; the tokenizer's files in <folder>
Out:  <folder>/config.json and safetensors; result.json with the differences of logits last
All arithmetic is fp32 on the CPU: equal there means equal bits, and the predictor keeps the GPU. The weights take
4 bytes a parameter of memory and are rounded once, on saving. Three models must agree: the adapter on its base,
the merged one, and the one that is loaded again from the files.
Dies half-way: <folder> holds part of the files and is thrown away by the parent.
Run alone: python -m tasks.distributed.merge job.json
"""

from __future__ import annotations

import hashlib
import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from infra.crashpoints import crashpoint
from infra.errors import Broken, UserError
from infra.models.model_folder import write_config, write_generation_config
from infra.spec import Precision
from tasks.distributed.checkpoint import error_of_writing
from tasks.distributed.codec import Codec
from tasks.distributed.contract import MergeJob, main_of
from tasks.distributed.examples import flatten, read_rows
from tasks.distributed.model import dtype_of, load_base, load_tokenizer, load_tuned, save_model
from tasks.distributed.stops import stop_ids, write_stops

if TYPE_CHECKING:
    from peft import PeftModel

CPU = torch.device("cpu")
ROUNDOFF = {"fp32": 0.0, "bf16": 2.0**-8}
"""Largest relative error of one rounding; fp32 weights are not rounded."""
MERGED_BOUND, MERGED_NOISE = 1e-4, 1e-5
"""Shares of the largest logit. Merging only regroups fp32 sums: 2e-6 was measured, with 4 to 32 layers."""
EFFECT_SHARE = 0.1
"""The error must also be small beside what the adapter changes, or a merge that does nothing would pass."""
ROUNDING_FACTOR = 2.0
PROBE_ROWS, PROBE_TOKENS = 4, 128
STORED_AS = {"fp32": "float32", "bf16": "bfloat16"}
PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file")
"""Where transformers notes from which folder a model or tokenizer came."""
Logits = Tensor
"""fp32, (positions of all probes, vocabulary)"""


def merge(job: MergeJob) -> int:
    """Merge, save, load again; compare the logits after each. Raises UserError, Broken, Transient."""
    folder = Path(job.folder)
    dtype = stored_dtype(Path(job.base)) if job.dtype == "auto" else job.dtype
    tuned: PreTrainedModel | PeftModel = (
        load_tuned(Path(job.base), Path(job.tuned), dtype=torch.float32, device=CPU) if job.tuned
        else load_base(Path(job.base), dtype=torch.float32, device=CPU))
    codec = Codec(load_tokenizer(folder))
    probes = probes_of(job, codec, tuned.config.get_text_config().vocab_size)
    by_adapter = logits_of(tuned, probes)
    if isinstance(tuned, PreTrainedModel):
        merged, effect = tuned, 0.0
    else:
        with tuned.disable_adapter():
            effect = difference(by_adapter, logits_of(tuned, probes))["max_relative"]
        merged = unload(tuned)
    by_merged = logits_of(merged, probes)
    after_merge = check_merged(by_adapter, by_merged, effect)

    save_rounded(merged, Path(job.base), folder, dtype)
    write_stops(folder, stop_ids(codec, Path(job.base)))
    crashpoint("merge.saved")
    written, by_rounded = digest_of_weights(merged), logits_of(merged, probes)
    count = sum(parameter.dim() == 2 for parameter in merged.parameters())
    del merged, tuned
    after_reload = check_reloaded(folder, written, by_merged, by_rounded, probes, ROUNDOFF[dtype] * math.sqrt(count))
    job.finish({
        "dtype": dtype, "probe_tokens": sum(map(len, probes)), "effect": effect,
        "merged": after_merge, "reloaded": after_reload})
    return 0


def stored_dtype(base: Path) -> Literal["fp32", "bf16"]:
    """fp32 if the base's largest weight is stored so; 16-bit bases, fp16 among them, become bf16."""
    largest, found = 0, ""
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                weight = file.get_slice(name)
                if (size := math.prod(weight.get_shape())) > largest:
                    largest, found = size, weight.get_dtype()
    return "fp32" if found == "F32" else "bf16"


def probes_of(job: MergeJob, codec: Codec, vocabulary: int) -> list[list[int]]:
    """Token ids that the models are compared on: held-out rows, or one row of ids from all over the vocabulary."""
    longest = min(PROBE_TOKENS, job.context_tokens)
    rows = islice(read_rows(Path(job.rows)), PROBE_ROWS) if job.rows else iter(())
    found = [flatten(codec.row(job.kind, row, job.separator, train_on_prompt=False))[0] for row in rows]
    if found:
        return [ids[:longest].tolist() for ids in found]
    size = min(vocabulary, len(codec.tokenizer))
    return [[i * size // longest for i in range(longest)]]


@torch.inference_mode()
def logits_of(model: PreTrainedModel | PeftModel, probes: list[list[int]]) -> Logits:
    """Logits at every position of every probe, one probe at a time: nothing is padded."""
    return torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in probes])


def unload(tuned: PeftModel) -> PreTrainedModel:
    """PEFT's merge in fp32. Raises UserError for an adapter that is not finite."""
    untie(tuned)
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"it cannot be merged ({error})", where="adapter", fix="Train the version again.") from error


def untie(tuned: PeftModel) -> None:
    """Give the head weights of its own if it shares them with the embedding and one of the two has an adapter.

    PEFT adds the adapter's product to the shared weights, and so to the other one too: logits off by 0.2 to 50
    times the largest. It puts `tie_word_embeddings` right by itself when the two differ.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    causal = tuned.get_base_model()
    ends = (causal.get_output_embeddings(), causal.get_input_embeddings())
    adapted = [end for end in ends if isinstance(end, BaseTunerLayer)]
    head, embedding = (end.get_base_layer() if end in adapted else end for end in ends)
    if adapted and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def difference(ours: Logits, theirs: Logits) -> dict[str, float]:
    """How far `theirs` are from `ours`; relative: to the largest of ours."""
    largest = (ours - theirs).abs().max().item()
    return {
        "max_absolute": largest, "max_relative": largest / ours.abs().max().item(),
        "same_argmax": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()}


def check_merged(by_adapter: Logits, by_merged: Logits, effect: float) -> dict[str, float]:
    """The merged model against the adapter on its base. Raises Broken."""
    found = difference(by_adapter, by_merged)
    return _within(found, min(MERGED_BOUND, max(MERGED_NOISE, EFFECT_SHARE * effect)), "the merged model")


def save_rounded(merged: PreTrainedModel, base: Path, folder: Path, dtype: Precision) -> None:
    """Write the model in `dtype`; it stays in memory with the rounded values, in fp32 again."""
    for parameter in merged.parameters():  # not model.to(): that would round the position tables as well
        parameter.data = parameter.data.to(dtype_of(dtype, CPU))
    merged.generation_config = GenerationConfig()  # the base's own may be one that transformers refuses to write
    try:
        save_model(merged, folder)
        tied = getattr(merged.config, "tie_word_embeddings", True)  # no more where it was untied for the merge
        write_config(folder, base, STORED_AS[dtype], is_tied=bool(tied))
        write_generation_config(folder, base)
    except (SafetensorError, OSError) as error:
        raise error_of_writing(error, folder, error) from error
    for path in folder.glob("*config.json"):
        drop_paths(path)
    for parameter in merged.parameters():
        parameter.data = parameter.data.float()


def drop_paths(path: Path) -> None:
    """Take out of a configuration from which folder it was loaded."""
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in values.items() if name not in PATH_KEYS}
    if kept != values:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_reloaded(
    folder: Path, written: str, by_merged: Logits, by_rounded: Logits, probes: list[list[int]], rounding: float,
) -> dict[str, float]:
    """The model from the files against the one that was written: every weight and logit the same bits.

    Against the unrounded one the logits may differ by rounding. Roundings of n matrices are independent and add up
    as sqrt(n); the factor is for the largest of many logits. Measured: 0.1 to 0.45 of the bound.

    Raises Broken.
    """
    model = load_base(folder, dtype=torch.float32, device=CPU)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # out of the mapped file: products depend on how data is aligned
    if digest_of_weights(model) != written:
        raise Broken("the weights that are read back are not those that were written", where="the reloaded model")
    by_files = logits_of(model, probes)
    _within(difference(by_rounded, by_files), 0.0, "the reloaded model")
    return _within(difference(by_merged, by_files), ROUNDING_FACTOR * rounding, "the reloaded model")


def digest_of_weights(model: PreTrainedModel) -> str:
    """sha256 over names and bits of all weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _within(found: dict[str, float], bound: float, where: str) -> dict[str, Any]:
    if not found["max_relative"] <= bound:  # NaN is not within it either
        raise Broken(f"its logits are off by {found['max_relative']:.2g} of the largest", where=where,
                     allowed=f"at most {bound:.2g}", fix="Nothing was written.")
    return {**found, "bound": bound}


if __name__ == "__main__":
    main_of(MergeJob, merge)
