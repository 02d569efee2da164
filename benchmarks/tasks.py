"""Image classifiers and an encoder–decoder model before and after half of their groups are pruned.

    python benchmarks/tasks.py --images DIR --text FILE

Trains three small models from random weights, then prunes them with LoRA (``loraprune.prune``): a ViT and a ConvNeXt on
the 10,000 MNIST test images in DIR (8,000 to train on, 2,000 to measure on), and a T5 that spells words of FILE
backwards (measured on words that it has not seen). "Without recovery" is the same cut with nothing else done. Takes two
minutes on one core (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import gzip
import logging
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import loraprune
from loraprune import PruneResult, PruningConfig, RunOptions

SIZE = 28


def mnist(folder: Path) -> Dataset:
    """Images as they come, and their labels."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIZE, SIZE)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    features = datasets.Features(
        image=datasets.Array2D((SIZE, SIZE), "uint8"), label=datasets.ClassLabel(num_classes=10)
    )
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5], image_std=[0.5])


def vit() -> PreTrainedModel:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
            image_size=SIZE, patch_size=7, num_channels=1, num_labels=10,
        )
    )  # fmt: skip


def convnext() -> PreTrainedModel:
    return ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, image_size=SIZE, num_channels=1, num_labels=10
        )
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; a text ends with ``</s>``."""
    vocabulary = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    )


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=258, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
            pad_token_id=256, decoder_start_token_id=256, eos_token_id=257, dropout_rate=0.0,
            relative_attention_num_buckets=16, relative_attention_max_distance=16,
        )
    )  # fmt: skip


def backwards(text: Path) -> Dataset:
    """Words of four to nine letters, each once, with the word spelled backwards as the target."""
    words = sorted(set(re.findall(r"\b[a-z]{4,9}\b", text.read_text(encoding="utf-8").lower())))
    random.Random(0).shuffle(words)
    return Dataset.from_dict({"source": words, "target": [word[::-1] for word in words]})


def train_(model: PreTrainedModel, batches: Iterator[dict[str, torch.Tensor]], steps: int, rate: float) -> None:
    """Train every weight."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    model.train()
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def drawn(make: Callable[[list[int]], dict[str, torch.Tensor]], rows: int, size: int) -> Iterator[dict[str, Any]]:
    """Random batches."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield make(torch.randint(rows, (size,), generator=generator).tolist())


def pruned(
    model: PreTrainedModel, train: Dataset, held_out: Dataset, options: argparse.Namespace, **further: Any
) -> Any:
    """Prune a model as a checkpoint, so that the cut alone is measured too."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return loraprune.prune(
            folder,
            train,
            PruningConfig(ratio=options.ratio, seed=options.seed),
            training={
                "max_steps": options.tuning_steps,
                "per_device_train_batch_size": options.batch_size,
                "learning_rate": 3e-3,
                "seed": options.seed,
            },
            options=RunOptions(eval_data=held_out, eval_sequences=len(held_out), unrecovered=True),
            **further,
        )


def image_run(make: Callable[[], PreTrainedModel], options: argparse.Namespace) -> PruneResult:
    """Learn digits, then prune."""
    rows = mnist(options.images)
    parts = rows.train_test_split(test_size=len(rows) // 5, seed=0)
    read = processor()
    arrays = parts["train"].with_format("numpy")["image"][:]
    pixels = torch.tensor(arrays, dtype=torch.float32)[:, None] / 127.5 - 1  # what the processor makes of them
    labels = torch.tensor(parts["train"]["label"][:])
    model = make()
    batches = drawn(lambda i: {"pixel_values": pixels[i], "labels": labels[i]}, len(labels), options.batch_size)
    train_(model, batches, options.steps, 3e-3)
    return pruned(model, parts["train"], parts["test"], options, image_processor=read)


def text_run(options: argparse.Namespace) -> PruneResult:
    """Learn to spell backwards, then prune."""
    rows = backwards(options.text)
    parts = rows.train_test_split(test_size=min(500, len(rows) // 5), seed=0)
    tokenizer = byte_tokenizer()
    words, targets = parts["train"]["source"][:], parts["train"]["target"][:]

    def batch(chosen: list[int]) -> dict[str, torch.Tensor]:
        source = tokenizer([words[i] for i in chosen], padding=True, return_tensors="pt")
        target = tokenizer([targets[i] for i in chosen], padding=True, return_tensors="pt")["input_ids"]
        return {
            "input_ids": source["input_ids"],
            "attention_mask": source["attention_mask"],
            "labels": target.masked_fill(target == tokenizer.pad_token_id, -100),
        }

    model = t5()
    train_(model, drawn(batch, len(words), options.batch_size), options.steps, 3e-3)
    return pruned(model, parts["train"], parts["test"], options, tokenizer=tokenizer)


def line(name: str, result: PruneResult, seconds: float) -> str:
    """A row of the table."""
    metrics = result.metrics
    key = "exact_match" if "exact_match" in metrics["dense"] else "accuracy"
    values = [f"{metrics[state][key]:.1%}" for state in ("dense", "unrecovered", "pruned")]
    sizes = f"{metrics['dense']['parameters']:,} → {metrics['pruned']['parameters']:,}"
    widths = metrics["pruning"]["cuts"][-1]["widths"]
    kept = ", ".join(f"{'/'.join(map(str, dict.fromkeys(counts)))} {kind}" for kind, counts in widths.items())
    return f"| {name} | {sizes} | {kept} | " + " | ".join(values) + f" | {seconds:.0f} s |"


def main() -> None:
    """Run all three and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the MNIST test images (.gz)")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1200, help="steps of training from random weights")
    parser.add_argument("--tuning-steps", type=int, default=300, help="steps of pruning with LoRA")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    runs: dict[str, Callable[[], PruneResult]] = {
        "ViT, MNIST, accuracy": lambda: image_run(vit, options),
        "ConvNeXt, MNIST, accuracy": lambda: image_run(convnext, options),
        "T5, words backwards, exact match": lambda: text_run(options),
    }
    print(f"{options.ratio:.0%} of the prunable parameters removed, seed {options.seed}\n")
    print(
        "| | parameters | kept | dense | without recovery | pruned | time |\n|---|---|---|---|---|---|---|", flush=True
    )
    for name, work in runs.items():
        torch.manual_seed(options.seed)
        started = time.time()
        result = work()
        print(line(name, result, time.time() - started), flush=True)


if __name__ == "__main__":
    main()
