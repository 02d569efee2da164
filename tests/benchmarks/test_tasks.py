"""The benchmark of tasks runs, in miniature."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.test_benchmarks import run


def write_images(folder: Path, count: int = 100) -> Path:
    """Random images and labels in MNIST's own format."""
    random = np.random.default_rng(0)
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz", "wb") as file:
        file.write(bytes(16) + random.integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes())
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz", "wb") as file:
        file.write(bytes(8) + random.integers(0, 10, count, dtype=np.uint8).tobytes())
    return folder


@pytest.mark.full
def test_a_row_for_each_model_is_printed(tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    letters = "abcdefgh"
    text.write_text(" ".join(a + b + c + d for a in letters for b in letters for c, d in ("ee", "fa")))
    quick = ("--steps", "2", "--tuning-steps", "4", "--batch-size", "8")
    shown = run("benchmarks/tasks.py", "--images", str(write_images(tmp_path)), "--text", str(text), *quick)
    for name in ("ViT, MNIST, accuracy", "ConvNeXt, MNIST, accuracy", "T5, words backwards, exact match"):
        assert re.search(rf"\| {name} \| [\d,]+ → [\d,]+ \| .*channels \| \d+\.\d% \| \d+\.\d% \| \d+\.\d% ", shown), (
            name
        )


@pytest.mark.full
def test_the_benchmark_of_sparse_image_classifiers_prints_a_table_a_model(tmp_path: Path) -> None:
    quick = ("--steps", "2", "--batch-size", "8", "--methods", "wanda", "--sparsities", "2:4")
    shown = run("benchmarks/images.py", "--images", str(write_images(tmp_path)), *quick)
    for name in ("ViT", "ConvNeXt"):
        assert re.search(rf"\| {name} \| 2:4 \|\n\|---\|---\|\n\| wanda \| \d+\.\d% \|\ndense: \d+\.\d%", shown), name
