from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.checkpoints import byte_model
from tests.tasks.models import tiny_bert, tiny_convnext, tiny_roberta, tiny_t5, tiny_vit
from transformers import PreTrainedModel

from loraprune.measure.benchmark.random_inputs import (
    InputSize,
    inputs_in_words,
    prefill_inputs,
    training_inputs,
    writes_text,
)

CPU = torch.device("cpu")
SIZE = InputSize(batch_size=3, tokens=7)
MODELS = (byte_model, tiny_t5, tiny_bert, tiny_roberta, tiny_vit, tiny_convnext)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_kind_of_model_reads_its_input_and_gives_a_loss(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    with torch.no_grad():
        output = model(**prefill_inputs(model, SIZE, CPU))
        loss = model(**training_inputs(model, SIZE, CPU)).loss
    assert output.logits.shape[0] == 3
    assert bool(torch.isfinite(loss))


def test_prefill_fills_the_cache_and_gives_the_last_logits_alone() -> None:
    model = byte_model()
    output = model(**prefill_inputs(model, SIZE, CPU))
    assert output.logits.shape[:2] == (3, 1)
    assert output.past_key_values.get_seq_length() == 7


def test_no_random_token_is_padding() -> None:
    model = tiny_bert()
    ids = prefill_inputs(model, InputSize(batch_size=50, tokens=30), CPU)["input_ids"]
    assert model.config.pad_token_id not in ids
    assert len(ids.unique()) == model.config.vocab_size - 1


@pytest.mark.parametrize(
    ("make", "words", "writes"),
    [
        (byte_model, "3 × 7 tokens", True),
        (tiny_t5, "3 × 7 source and 7 target tokens", True),
        (tiny_bert, "3 × 7 tokens", False),
        (tiny_vit, "3 × 1×8×8 pixels", False),
    ],
)
def test_the_input_is_told_in_words(make: Callable[[], PreTrainedModel], words: str, writes: bool) -> None:
    assert inputs_in_words(make(), SIZE) == words
    assert writes_text(make()) is writes


def test_the_same_seed_gives_the_same_input() -> None:
    first, again = (prefill_inputs(byte_model(), SIZE, CPU)["input_ids"] for _ in range(2))
    other = prefill_inputs(byte_model(), InputSize(batch_size=3, tokens=7, seed=1), CPU)["input_ids"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
