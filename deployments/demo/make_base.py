"""Make the demo's base: a small tokenizer, a randomly initialised Llama, and the corpus to pre-train it on.

In:   nothing     Out: FOLDER/base-init (config, tokenizer, weights) and FOLDER/corpus.jsonl ({"text"} rows)
Both are seeded: rerun after a crash, the same versions of torch and tokenizers give the same bytes.
Names are spelled in two or three small pieces, the same ones after a space and at the start of a line, so
that a name never seen can be copied piece by piece.
Run alone: python -m deployments.demo.make_base FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deployments.demo.corpus import corpus_rows, write_corpus

VOCABULARY_TOKENS = 2048
CONTEXT_TOKENS = 512
TOKENIZER_ROWS = 8_000
CORPUS_ROWS = 60_000
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's untrained base and its corpus.")
    parser.add_argument("folder", type=Path, help="where base-init/ and corpus.jsonl go")
    parser.add_argument("--rows", type=int, default=CORPUS_ROWS, help="rows of the corpus")
    arguments = parser.parse_args()
    print(write_base(arguments.folder / "base-init"))
    print(write_corpus(arguments.folder / "corpus.jsonl", arguments.rows))


if __name__ == "__main__":
    main()
