"""Accuracy of sparse image classifiers, without training: magnitude, Wanda and SparseGPT on linear layers.

    python benchmarks/images.py --images DIR

Trains a small ViT and a small ConvNeXt from random weights on 8,000 of the MNIST test images in DIR, then makes the
linear layers of their blocks sparse (``loraprune.oneshot``, calibrated on 128 of these images) and measures on the
other 2,000.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from tasks import convnext, drawn, mnist, processor, train_, vit
from transformers import PreTrainedModel

import loraprune
from loraprune import OneshotConfig, RunOptions

METHODS = ("magnitude", "wanda", "sparsegpt")
SPARSITIES = ("0.5", "2:4", "0.7", "0.8")


def trained(model: PreTrainedModel, train: Dataset, options: argparse.Namespace) -> PreTrainedModel:
    """Learn digits from random weights."""
    arrays = train.with_format("numpy")["image"][:]
    pixels = torch.tensor(arrays, dtype=torch.float32)[:, None] / 127.5 - 1  # what the processor makes of them
    labels = torch.tensor(train["label"][:])
    batches = drawn(lambda i: {"pixel_values": pixels[i], "labels": labels[i]}, len(labels), options.batch_size)
    train_(model, batches, options.steps, 3e-3)
    return model


def measured(folder: str, parts: Any, method: str, sparsity: str, options: argparse.Namespace) -> tuple[float, float]:
    """Accuracy before and after."""
    config = OneshotConfig(criterion=method, sparsity=sparsity, seed=options.seed)
    what = RunOptions(eval_data=parts["test"], eval_sequences=len(parts["test"]))
    result = loraprune.oneshot(folder, parts["train"], config, image_processor=processor(), options=what)
    return result.metrics["dense"]["accuracy"], result.metrics["pruned"]["accuracy"]


def main() -> None:
    """Print a table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the MNIST test images (.gz)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", default=list(SPARSITIES))
    parser.add_argument("--steps", type=int, default=1200, help="steps of training from random weights")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    rows = mnist(options.images)
    parts = rows.train_test_split(test_size=len(rows) // 5, seed=0)
    for name, make in (("ViT", vit), ("ConvNeXt", convnext)):
        torch.manual_seed(options.seed)
        with tempfile.TemporaryDirectory() as folder:
            trained(make(), parts["train"], options).save_pretrained(folder)
            print(f"| {name} | " + " | ".join(options.sparsities) + " |\n|---|" + "---|" * len(options.sparsities))
            for method in options.methods:
                found = [measured(folder, parts, method, sparsity, options) for sparsity in options.sparsities]
                print(f"| {method} | " + " | ".join(f"{after:.1%}" for _, after in found) + " |", flush=True)
            print(f"dense: {found[0][0]:.1%}\n", flush=True)


if __name__ == "__main__":
    main()
