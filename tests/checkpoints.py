"""Tiny checkpoints with a byte-level tokenizer, and small data files: made on the spot, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraprune.checkpoint.load import default_device
from loraprune.checkpoint.source import ModelSource
from loraprune.measure.model import check_measurable, measuring_dtype

CONTEXT = 64

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>")


def tiny_tokenizer(*, pad: bool = False, adds: str = "$A") -> PreTrainedTokenizerBase:
    """One token a byte, a handful of special ones, and a chat template; no pad token unless asked for.

    ``adds`` says what it puts around a text by itself, such as ``"<s> $A </s>"``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *_SPECIAL])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens(list(_SPECIAL))
    if adds != "$A":
        frame = processors.TemplateProcessing(single=adds, special_tokens=[(t, vocabulary[t]) for t in _SPECIAL])
        backend.post_processor = processors.Sequence([backend.post_processor, frame])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


VOCABULARY = 256 + len(_SPECIAL)
BOS, EOS, PAD = 256, 257, 260


def byte_model(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A tiny random model for ``tiny_tokenizer``: 8 query heads on 4 KV heads and 64 channels in 2 layers."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "attention": "sdpa",
    }
    return tiny_model(family, **values | changes)


def tiny_checkpoint(
    folder: Path, family: str = "llama", *, tokenizer: PreTrainedTokenizerBase | None = None, **changes: Any
) -> Path:
    """Save a tiny random model with its tokenizer; ``changes`` go to ``byte_model``."""
    byte_model(family, **changes).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


_WORDS = ("the", "old", "river", "runs", "past", "mill", "and", "over", "stones", "while", "birds", "sing", "near")


def sentences(count: int) -> list[str]:
    """Short lines of text, all different."""
    size = len(_WORDS)
    return [
        " ".join(_WORDS[(start * 7 + step * (1 + start % 5)) % size] for step in range(6)) + f" {start}."
        for start in range(count)
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path: Path, count: int = 60) -> Path:
    """Sentences as JSON Lines with a column ``text``."""
    return write_jsonl(path, ({"text": text} for text in sentences(count)))


def measurable(name: str | Path, **settings: Any) -> ModelSource:
    """A model that can be measured, before its weights."""
    return check_measurable(ModelSource.of_any(name, **settings))


def load_measured(name: str | Path, *, merge: bool = True, dtype: str | None = None, **settings: Any) -> Any:
    """A model as it is loaded to be measured."""
    source, place = measurable(name, **settings), default_device()
    return source.load(measuring_dtype(source, dtype, place), place, merge=merge)
