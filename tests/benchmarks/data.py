"""Real data and models for benchmarks, from the folder ../shared beside the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from tasks.distributed.batches import batch_of
from tasks.distributed.contract import EncodeJob
from tasks.distributed.encode import encode
from tasks.distributed.loss import PackedLoss
from tasks.distributed.packs import PackedRows
from tests.conftest import SHARED

STORIES = SHARED / "models" / "stories260K" / "hf"
LLAMA_2 = SHARED / "models" / "llama2_tokenizer"
LLAMA_20M = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 8, "max_position_embeddings": 1024}


def needs_shared() -> None:
    """Exit with a sentence where there is no real data."""
    if not SHARED.is_dir():
        sys.exit("this benchmark needs the folder ../shared (real data and models) beside the checkout")


def rows_of(folder: Path, name: str = "samsum", **splits: str) -> Path:
    """train.jsonl and validation.jsonl of a data set, by its own converter."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, theirs in splits.items():
        with (folder / f"{split}.jsonl").open("wb") as file:
            command = [sys.executable, str(SHARED / "tools" / "to_jsonl.py"), name, theirs]
            subprocess.run(command, stdout=file, check=True)
    return folder


def samsum(folder: Path, held_out: int) -> Path:
    """SAMSum with its first `held_out` validation rows."""
    path = rows_of(folder, train="train", validation="val") / "validation.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:held_out]))
    return folder


def llama_2_tokenizer() -> PreTrainedTokenizerBase:
    """The guide's tokenizer. Its own configuration has empty strings for the special tokens."""
    return AutoTokenizer.from_pretrained(LLAMA_2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_20m(folder: Path) -> Path:
    """A Llama of 20 million random weights: hidden 256, 6 layers, length 1024."""
    return random_llama(folder, LLAMA_20M)


def random_llama(folder: Path, shape: dict[str, int], dtype: torch.dtype = torch.float32) -> Path:
    """A Llama of random weights with the vocabulary of Llama 2, made in `dtype` on the GPU where there is one."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, **shape)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    part = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(part, max_shard_size="4GB")
    llama_2_tokenizer().save_pretrained(part)
    part.rename(folder)
    del model
    torch.cuda.empty_cache()  # the contenders are other processes and need the room
    return folder


def packs_of(rows: Path, tokenizer: Path, length: int, out: Path) -> Path:
    """Both splits, tokenised and packed by Anneal; labels on completions only."""
    out.mkdir(parents=True, exist_ok=True)
    encode(EncodeJob(out=str(out), rows=str(rows), tokenizer=str(tokenizer), kind="prompt", separator="",
                     chunk_tokens=length, pack=True, wrap=False, train_on_prompt=False))
    return out


def validation_loss(loss: PackedLoss, packs: Path) -> float:
    """Nats per labelled held-out token, one measure for all contenders: fp32 but beside a base in bf16."""
    rows, total, labels = PackedRows(packs / "validation"), 0.0, 0
    device = next(loss.parameters()).device
    half = any(weight.dtype == torch.bfloat16 for weight in loss.parameters())
    loss.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for row in range(len(rows)):
            batch = batch_of(rows, np.arange(row, row + 1)).to(device)
            total, labels = total + float(loss(batch)), labels + len(batch.labels_N)
    return total / labels


def lognormal_lengths(count: int, longest: int) -> NDArray[np.int64]:
    """Lengths like SAMSum's in tokens: mean 232."""
    draw = np.random.default_rng(0).lognormal(5.2, 0.7, count).astype(np.int64) + 1
    return np.minimum(draw, longest)
