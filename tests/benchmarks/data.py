"""Real data and models for benchmarks, from the folder ../shared beside the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tasks.distributed.data import PackedRows
from tasks.distributed.encode import encode
from tasks.distributed.job import EncodeJob
from tasks.distributed.loss import PackedLoss
from tests.conftest import SHARED

STORIES = SHARED / "models" / "stories260K" / "hf"
LLAMA_2 = SHARED / "models" / "llama2_tokenizer"


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


def llama_2_tokenizer() -> PreTrainedTokenizerBase:
    """The guide's tokenizer. Its own configuration has empty strings for the special tokens."""
    return AutoTokenizer.from_pretrained(LLAMA_2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_20m(folder: Path) -> Path:
    """A Llama of 20 million random weights: hidden 256, 6 layers, the vocabulary of Llama 2, length 1024."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=1024, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(folder)
    llama_2_tokenizer().save_pretrained(folder)
    return folder


def packs_of(rows: Path, tokenizer: Path, length: int, out: Path) -> Path:
    """Both splits, tokenised and packed by Anneal; labels on completions only."""
    out.mkdir(parents=True, exist_ok=True)
    encode(EncodeJob(out=str(out), rows=str(rows), tokenizer=str(tokenizer), kind="prompt", separator="",
                     chunk_tokens=length, pack=True, wrap=False, train_on_prompt=False))
    return out


def validation_loss(loss: PackedLoss, packs: Path) -> float:
    """Nats per labelled held-out token in fp32: one measure for all contenders."""
    rows, total, labels = PackedRows(packs / "validation"), 0.0, 0
    device = next(loss.parameters()).device
    loss.eval()
    with torch.no_grad():
        for row in range(len(rows)):
            batch = rows.batch(np.arange(row, row + 1)).to(device)
            total, labels = total + float(loss(batch)), labels + len(batch.labels_N)
    return total / labels


def lognormal_lengths(count: int, longest: int) -> NDArray[np.int64]:
    """Lengths like SAMSum's in tokens: mean 232."""
    draw = np.random.default_rng(0).lognormal(5.2, 0.7, count).astype(np.int64) + 1
    return np.minimum(draw, longest)
