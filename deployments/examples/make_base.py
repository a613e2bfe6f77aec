"""Make the demo's base: a small tokenizer, a random Llama, a corpus, and Anneal's own full fine-tuning on it.

In:   nothing     Out: FOLDER/base-init, FOLDER/corpus.jsonl ({"text"} rows), FOLDER/base: the trained base
All of it is seeded. Dies half-way: run it again, the training goes on at its last checkpoint.
Takes about 40 minutes on one core; the result ships in deployments/examples/base.
Names are spelled in two or three small pieces, the same ones after a space and at the start of a line, so
that a name never seen can be copied piece by piece.
Run alone: python -m deployments.examples.make_base FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deployments.examples.corpus import corpus_rows, write_corpus
from infra.models.base_models import find_base
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.distributed.events import Event
from tasks.ingest import ingest
from tasks.launcher.placement import place
from tasks.pack import find_pack, pack
from tasks.train import train
from tasks.validate import validate

VOCABULARY_TOKENS = 2048
CONTEXT_TOKENS = 512
TOKENIZER_ROWS = 8_000
CORPUS_ROWS = 70_000
STEPS = 9_000
RECIPE: dict[str, Any] = {
    "peft_method": "full", "pack_sequences": True, "chunk_size": 512, "train_batch_size": 2, "learning_rate": 4e-3,
    "weight_decay": 0.1, "checkpoint_steps": 1500, "run_validation": False, "num_ranks": 1}
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# The space before a capitalised word is a piece of its own, so that a name has the same pieces wherever it
# stands and can be copied; digits stand alone.
PIECES = Regex(r"\n+|'[a-z]+| (?=[A-Z])|[A-Z][a-z]*| ?[a-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+")


def make_tokenizer(seed: int = 3) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `PIECES`; adds BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(PIECES, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS, special_tokens=[BOS, EOS, PAD], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        model_max_length=CONTEXT_TOKENS, clean_up_tokenization_spaces=False, padding_side="left",
    )


def _texts(seed: int) -> Iterator[str]:
    return (row["text"] for row in corpus_rows(TOKENIZER_ROWS, seed))


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS, hidden_size=128, num_hidden_layers=4, intermediate_size=384,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True, initializer_range=0.04, dtype="float32", **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, **ids)
    return model


def write_base(folder: Path) -> Path:
    """Write the untrained base as a folder that `from_pretrained` loads offline."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_base(folder: Path, steps: int) -> Path:
    """Train FOLDER/base-init on FOLDER/corpus.jsonl by the pipeline's own steps; returns the trained base."""
    settings = Settings()
    store = Store(settings)
    spec = TrainingSpec(
        train_data=str(folder / "corpus.jsonl"), base_model=str(folder / "base-init"), destination="demo/base",
        max_steps=steps, **RECIPE)
    split = validate(store, ingest(settings, store, spec.train_data), None, spec.num_validation_samples)
    base = find_base(settings, spec.base_model)
    packed = find_pack(store, split, base, spec) or pack(settings, store, split, base, spec)
    trained = train(settings, store, place(settings, spec, packed, base), packed, base, show)
    shutil.copytree(folder / "base-init", folder / "base", dirs_exist_ok=True)
    return Path(shutil.copytree(store.fetch(trained.folder) / "model", folder / "base", dirs_exist_ok=True))


def show(event: Event) -> None:
    """One line in a hundred steps."""
    if event["event"] != "step" or event["step"] % 100 == 0:
        print(event, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's base.")
    parser.add_argument("folder", type=Path, help="where base-init/, corpus.jsonl and base/ go")
    parser.add_argument("--rows", type=int, default=CORPUS_ROWS, help="rows of the corpus")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the training")
    arguments = parser.parse_args()
    print(write_base(arguments.folder / "base-init"))
    print(write_corpus(arguments.folder / "corpus.jsonl", arguments.rows))
    print(train_base(arguments.folder, arguments.steps))


if __name__ == "__main__":
    main()
