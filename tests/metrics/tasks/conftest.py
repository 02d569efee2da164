"""Files of items, and a small random model that has room for them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.checkpoints import byte_model, sentences, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = 512


@pytest.fixture(scope="session")
def reader() -> PreTrainedModel:
    """A random model; no test changes it."""
    return byte_model(max_position_embeddings=CONTEXT)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def choice_items(count: int = 20) -> list[dict[str, object]]:
    """Items with two to four choices of different lengths."""
    draw = random.Random(0)
    texts = sentences(count)
    items = []
    for number, text in enumerate(texts):
        size = 2 + number % 3
        choices = [" ".join(draw.choices(text.split(), k=draw.randint(1, 6))) for _ in range(size)]
        items.append({"query": f"{number}: {text}", "choices": choices, "gold": draw.randrange(size)})
    return items


def context_items(count: int = 20) -> list[dict[str, object]]:
    """Items with two contexts and one continuation, as WinoGrande has them."""
    draw = random.Random(1)
    return [
        {
            "context_options": [f"{text} so the bird", f"{text} so the mill"],
            "continuation": f"was {draw.choice(['old', 'near', 'over'])} {number}.",
            "gold": draw.randrange(2),
        }
        for number, text in enumerate(sentences(count))
    ]


def write_items(path: Path, items: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_subject(folder: Path, subject: str, tests: int = 7, examples: int = 5) -> Path:
    """``X_test.csv`` and ``X_dev.csv``; answers go round."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("dev", examples), ("test", tests)):
        rows = ["question,choice0,choice1,choice2,choice3,answer"]
        rows += [f'"{split} {n}, what?",c{n}a,c{n}b,"c{n}, c",c{n}d,{n % 4}' for n in range(count)]
        (folder / f"{subject}_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / f"{subject}_test.csv"


@pytest.fixture
def choices_file(tmp_path: Path) -> Path:
    return write_items(tmp_path / "choices.jsonl", choice_items())


@pytest.fixture
def contexts_file(tmp_path: Path) -> Path:
    return write_items(tmp_path / "contexts.jsonl", context_items())
