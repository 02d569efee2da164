"""Small image classifiers, text classifiers and encoder–decoder models, and data that they learn in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

LABELS = 10
WORDS = ("good", "bad", "fine", "poor", "river", "stone", "bird", "mill", "old", "past", "near", "over")
LETTERS = "abcdefgh"


def tiny_vit(**changes: Any) -> PreTrainedModel:
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    values |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": LABELS}
    return ViTForImageClassification(ViTConfig(**values | changes)).eval()


def tiny_convnext(**changes: Any) -> PreTrainedModel:
    values = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 2}
    values |= {"image_size": 8, "num_channels": 1, "num_labels": LABELS}
    return ConvNextForImageClassification(ConvNextConfig(**values | changes)).eval()


_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tiny_bert(**changes: Any) -> PreTrainedModel:
    values = {**_TEXT, "vocab_size": 5 + len(WORDS), "max_position_embeddings": 32, "pad_token_id": 0}
    return BertForSequenceClassification(BertConfig(**values | changes)).eval()


def tiny_roberta(**changes: Any) -> PreTrainedModel:
    values = {**_TEXT, "vocab_size": 5 + len(WORDS), "max_position_embeddings": 34, "pad_token_id": 0}
    return RobertaForSequenceClassification(RobertaConfig(**values | changes)).eval()


def tiny_t5(**changes: Any) -> PreTrainedModel:
    values = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    values |= {"vocab_size": 258, "pad_token_id": 256, "decoder_start_token_id": 256, "eos_token_id": 257}
    values |= {"dropout_rate": 0.0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
    return T5ForConditionalGeneration(T5Config(**values | changes)).eval()


def word_tokenizer() -> PreTrainedTokenizerBase:
    """One token a word of ``WORDS``; opens and closes texts and pairs as BERT's does."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *WORDS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte; closes a text with ``</s>``, as T5's does."""
    vocabulary = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    )


def digits() -> tuple[Dataset, Dataset]:
    """The 8×8 images of handwritten digits that scikit-learn brings, to train on and to measure on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    features = datasets.Features(
        {
            "pixel_values": datasets.Array3D((1, 8, 8), "float32"),
            "label": datasets.ClassLabel(names=[str(number) for number in range(LABELS)]),
        }
    )
    rows = Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features)
    parts = rows.train_test_split(test_size=400, seed=0)
    return parts["train"], parts["test"]


def opinions(count: int, *, seed: int = 0) -> Dataset:
    """Texts of random words, with the label 1 where ``good`` or ``fine`` is among them."""
    chance = random.Random(seed)
    texts = [chance.sample(WORDS, chance.randint(3, 8)) for _ in range(count)]
    labels = [int("good" in words or "fine" in words) for words in texts]
    return Dataset.from_dict({"text": [" ".join(words) for words in texts], "label": labels})


def reversals(count: int, *, seed: int = 0) -> Dataset:
    """Strings of letters and the same strings backwards."""
    chance = random.Random(seed)
    texts = ["".join(chance.choices(LETTERS, k=5)) for _ in range(count)]
    return Dataset.from_dict({"source": texts, "target": [text[::-1] for text in texts]})


def train_(
    model: PreTrainedModel, batch: Callable[[int], Mapping[str, torch.Tensor]], *, steps: int, learning_rate: float
) -> PreTrainedModel:
    """Train every weight of a model with AdamW; ``batch(step)`` gives what it is called with."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for step in range(steps):
        model(**batch(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def drawn(columns: Mapping[str, torch.Tensor], size: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Random batches of rows."""
    generator = torch.Generator().manual_seed(0)

    def batch(step: int) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(next(iter(columns.values()))), (size,), generator=generator)
        return {name: values[rows] for name, values in columns.items()}

    return batch


def learned_images(model: PreTrainedModel, rows: Dataset, *, steps: int = 300) -> PreTrainedModel:
    """An image classifier that has learned ``rows``."""
    columns = {
        "pixel_values": torch.tensor(np.asarray(rows["pixel_values"]), dtype=torch.float32),
        "labels": torch.tensor(rows["label"]),
    }
    return train_(model, drawn(columns, 64), steps=steps, learning_rate=3e-3)


def learned_texts(model: PreTrainedModel, rows: Dataset) -> PreTrainedModel:
    """A text classifier that has learned ``rows``."""
    encoded = word_tokenizer()(rows["text"][:], padding=True, return_tensors="pt")
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")} | {
        "labels": torch.tensor(rows["label"])
    }
    return train_(model, drawn(columns, 32), steps=200, learning_rate=3e-3)


def learned_pairs(model: PreTrainedModel, rows: Dataset) -> PreTrainedModel:
    """An encoder–decoder model that has learned ``rows``, whose strings are all of one length."""
    tokenizer = byte_tokenizer()
    columns = {
        "input_ids": tokenizer(rows["source"][:], return_tensors="pt")["input_ids"],
        "labels": tokenizer(rows["target"][:], return_tensors="pt")["input_ids"],
    }
    return train_(model, drawn(columns, 64), steps=450, learning_rate=5e-3)
