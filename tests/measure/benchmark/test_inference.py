from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model
from transformers import T5Config, T5ForConditionalGeneration

from loraprune.measure.benchmark.inference import after_prompt
from loraprune.measure.benchmark.random_inputs import InputSize, random_ids
from loraprune.measure.benchmark.timing import in_turns

CPU = torch.device("cpu")
SIZE = InputSize(batch_size=3, tokens=10)


def encoder_decoder() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def test_every_step_reads_one_token_behind_a_cache_that_grows() -> None:
    model = byte_model()
    decoding = after_prompt(model, SIZE, 4, CPU)
    seen: list[tuple[tuple[int, ...], int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((tuple(kwargs["input_ids"].shape), kwargs["past_key_values"].get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    times = in_turns({"only": decoding.contender()}, repeats=2, warmup=1)
    assert seen == [((3, 1), 10 + step) for step in range(4)] * 3
    assert len(times["only"].seconds) == 2


def test_decoding_goes_on_from_the_prompt_as_without_a_cache() -> None:
    model = byte_model().eval()
    decoding = after_prompt(model, SIZE, 2, CPU)
    outputs: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.logits[:, -1]))
    with torch.no_grad():
        decoding.run(decoding.cache)
        prompt = random_ids(model.config, InputSize(tokens=10), 10, CPU).expand(3, -1)
        whole = model(input_ids=torch.cat((prompt, decoding.tokens), 1), use_cache=False).logits
    assert torch.allclose(torch.stack(outputs[:2], 1), whole[:, 10:12], atol=1e-5)


def test_the_cache_takes_the_bytes_of_its_keys_and_values() -> None:
    config = byte_model().config
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 10 * 3
    assert after_prompt(byte_model(), SIZE, 1, CPU).cache_bytes() == values * 4


def test_an_encoder_reads_its_source_once() -> None:
    model = encoder_decoder()
    decoding = after_prompt(model, SIZE, 4, CPU)
    reads: list[None] = []
    model.encoder.register_forward_hook(lambda *_: reads.append(None))
    in_turns({"only": decoding.contender()}, repeats=2, warmup=0)
    assert not reads


def test_the_cache_of_the_prompt_is_the_same_after_a_turn() -> None:
    decoding = after_prompt(byte_model(), SIZE, 4, CPU)
    before = decoding.cache_bytes()
    in_turns({"only": decoding.contender()}, repeats=1, warmup=0)
    assert decoding.cache_bytes() == before


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        InputSize(batch_size=0)
