"""Models that have learned their task, made once; tests take copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tests.tasks.models import (
    byte_tokenizer,
    digits,
    learned_images,
    learned_pairs,
    learned_texts,
    opinions,
    reversals,
    tiny_bert,
    tiny_convnext,
    tiny_t5,
    tiny_vit,
    word_tokenizer,
)
from tests.thinned import thinned


@pytest.fixture(scope="session")
def digit_images() -> tuple[Dataset, Dataset]:
    pytest.importorskip("sklearn")
    return digits()


@pytest.fixture(scope="session", params=thinned(["vit", "convnext"]))
def image_checkpoint(
    request: pytest.FixtureRequest, digit_images: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder: Path = tmp_path_factory.mktemp("images") / request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_vit() if request.param == "vit" else tiny_convnext()
        learned_images(model, digit_images[0]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "bert"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learned_texts(tiny_bert(), opinions(600)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "t5"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learned_pairs(tiny_t5(), reversals(3000)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
