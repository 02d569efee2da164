"""Figures of models for ``benchmarks/guard.py``: one shot, forward pass, decoding, evaluation. All in CPU time."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from guard_record import Figures, Measured
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune import OneshotConfig
from loraprune.measure.benchmark.inference import after_prompt, forward_contender
from loraprune.measure.benchmark.random_inputs import InputSize
from loraprune.measure.benchmark.timing import Call, Times, TurnTaker, in_turns
from loraprune.measure.benchmark.training_step import cut_at_random_
from loraprune.metrics.perplexity import HeldOut, perplexity
from loraprune.pruning.groups import Groups
from loraprune.pruning.oneshot import prune_
from loraprune.structure.describe import describe

VOCABULARY, TOKENS, NEW_TOKENS = 8192, 512, 16
FEW_WORDS = 1024
"""Vocabulary of a model whose output layer, which is not pruned, must not count for much."""
FORWARD_TOKENS = 2048
CPU = torch.device("cpu")


def random_llama(hidden: int, channels: int, layers: int, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """A Llama with random weights, in evaluation mode."""
    heads = hidden // 64
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=FORWARD_TOKENS + NEW_TOKENS,
    )
    return LlamaForCausalLM(config).eval()


def pruning_without_training(model: Any, rows: list[torch.Tensor]) -> None:
    """Prune to 50 % by ``osscar`` and ``stream`` with uniform widths, as ``loraprune oneshot`` does in memory."""
    config = OneshotConfig(ratio=0.5, criterion="osscar", repair="stream", allocation="uniform")
    groups = Groups.all_of(describe(model), config.target, config.criterion)
    with torch.no_grad():
        prune_(model, groups, rows, repair=config.repair)


def oneshot_turn(model: LlamaForCausalLM, rows: list[torch.Tensor]) -> TurnTaker:
    """Pruning a copy of a model, without the copying."""

    @contextmanager
    def turn() -> Iterator[Call]:
        pruned = copy.deepcopy(model)
        yield lambda: pruning_without_training(pruned, rows)

    return TurnTaker(turn=turn, device=CPU)


def oneshot(options: argparse.Namespace, folder: Path) -> Figures:
    """One shot, beside the work that none can go without, each part timed alone.

    These are two forward passes of the blocks over the calibration data, the second moments of what enters each
    consumer, and their factorizations in 64 bits with the inverse.
    """
    hidden, channels = options.hidden, options.hidden * 11 // 4
    model = random_llama(hidden, channels, options.layers)
    rows = [torch.randint(VOCABULARY, (TOKENS,)) for _ in range(options.rows)]
    batches = torch.stack(rows).split(8)
    inputs = {width: torch.randn(TOKENS * options.rows, width) for width in (hidden, channels)}
    moments = {width: x_TI.T @ x_TI for width, x_TI in inputs.items()}

    def passes() -> None:
        for _ in range(2):
            for batch in batches:
                model.model(input_ids=batch, use_cache=False)

    def second_moments() -> None:
        for _ in range(options.layers):
            for x_TI in inputs.values():
                x_TI.T @ x_TI

    def factorizations() -> None:
        for _ in range(options.layers):
            for moment_II in moments.values():
                torch.cholesky_inverse(torch.linalg.cholesky(moment_II.double()))

    needed = (passes, second_moments, factorizations)
    contenders = {call.__name__: _without_gradients(call) for call in needed} | {"oneshot": oneshot_turn(model, rows)}
    times = in_turns(contenders, repeats=options.rounds, warmup=1, clock=time.process_time)
    parts = (times[call.__name__].seconds for call in needed)
    floor = Times(tuple(sum(turn) for turn in zip(*parts, strict=True)))
    for call in needed:
        print(f"  {call.__name__}: {times[call.__name__].median:.3f} s", flush=True)
    return {"oneshot": Measured.ratio(times["oneshot"], floor)}


def _without_gradients(call: Call) -> TurnTaker:
    @contextmanager
    def turn() -> Iterator[Call]:
        with torch.no_grad():
            yield call

    return TurnTaker(turn=turn, device=CPU)


def inference(options: argparse.Namespace, folder: Path) -> Figures:
    """A pruned model beside its dense one: a forward pass, and decoding with a cache."""
    models = {"dense": random_llama(options.hidden, options.hidden * 11 // 4, options.layers, FEW_WORDS)}
    models["pruned"] = copy.deepcopy(models["dense"])
    cut_at_random_(models["pruned"], 0.5, allocation="uniform", head_counts="any")
    ids = torch.randint(FEW_WORDS, (1, FORWARD_TOKENS))
    given = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    forward = _in_turns(models, lambda model: forward_contender(model, lambda *_: given), options.repeats)
    size = InputSize(batch_size=1, tokens=TOKENS)
    decoding = _in_turns(
        models, lambda model: after_prompt(model, size, NEW_TOKENS, CPU).contender(), 2 * options.repeats
    )
    found = {"forward": forward, "decoding": decoding}
    return {name: Measured.ratio(times["pruned"], times["dense"]) for name, times in found.items()}


def _in_turns(
    models: Mapping[str, LlamaForCausalLM], contender: Callable[[Any], TurnTaker], repeats: int
) -> dict[str, Times]:
    contenders = {name: contender(model) for name, model in models.items()}
    return in_turns(contenders, repeats=repeats, warmup=1, clock=time.process_time)


def evaluation(options: argparse.Namespace, folder: Path) -> Figures:
    """Perplexity as ``loraprune eval`` measures it, beside a loop of transformers' own loss over the same batches."""
    model = random_llama(options.hidden, options.hidden * 11 // 4, options.layers)
    segments = torch.randint(VOCABULARY, (options.rows, TOKENS))
    held_out = HeldOut(sequences=[(row, row) for row in segments])
    batches = segments.split(4096 // TOKENS)

    def bare() -> None:
        for ids in batches:
            model(input_ids=ids, labels=ids, use_cache=False).loss.item()

    contenders = {"ours": _without_gradients(lambda: perplexity(model, held_out)), "bare": _without_gradients(bare)}
    times = in_turns(contenders, repeats=options.repeats, warmup=1, clock=time.process_time)
    return {"eval": Measured.ratio(times["ours"], times["bare"])}
