"""Time of a model with other widths: blocks of several widths, timed on this machine before any cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.allocation.allocate import allocate
from loraprune.checkpoint.load import random_model
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.inference import after_prompt, forward_contender
from loraprune.measure.benchmark.memory import free_memory
from loraprune.measure.benchmark.random_inputs import InputSize, inputs_in_words, prefill_inputs, writes_text
from loraprune.measure.benchmark.timing import TurnTaker, in_turns
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, Widths, widest
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.measure.estimation.shape_models import ShapeModels

TIMED_WIDTHS = 6
"""Number of widths timed for each kind, besides the dense one; times between them are interpolated."""

NEW_TOKENS = 16
SECONDS = 60.0
"""Approximate maximum seconds of the timing; each model is timed at least :data:`LEAST` times."""

LEAST, MOST, WARMUP = 3, 15, 2

LEAST_LEFT = 0.02
"""Minimum share of a block's time that its narrowest form takes."""


@dataclass(frozen=True, kw_only=True)
class TimedWork:
    """Work to time.

    Attributes:
        phase: ``prefill``, the forward pass over a prompt, or ``decode``, token by token after it.
        size: batch, and tokens of the prompt.
    """

    phase: str = "prefill"
    size: InputSize = field(default_factory=InputSize)

    def in_words(self, model: PreTrainedModel) -> str:
        """``"1 × 2048 tokens"``, or ``"decoding behind 1 × 2048 tokens"``."""
        words = inputs_in_words(base_model(model), self.size)
        return f"decoding behind {words}" if self.phase == "decode" else words

    def contender(self, model: PreTrainedModel) -> TurnTaker:
        """Return the timed call of a model.

        Raises:
            ValueError: decoding was requested, but the model generates no text.
        """
        device = next(model.parameters()).device
        if self.phase == "prefill":
            given = prefill_inputs(base_model(model), self.size, device)
            return forward_contender(model, lambda model, device: given)
        if not writes_text(base_model(model)):
            raise ValueError("This model writes no text, so decoding cannot be timed. Choose prefill.")
        return after_prompt(model, self.size, NEW_TOKENS, device).contender()


@dataclass(frozen=True, kw_only=True)
class WidthTimes:
    """Times of a model by its widths.

    Attributes:
        work: description of the timed work.
        outside: seconds of everything except the blocks.
        block: seconds of a dense block.
        blocks: number of blocks; ``open``: number of blocks that may shrink.
        tables: seconds of a block in which one kind has another width, by kind and width.
    """

    work: str
    outside: float
    block: float
    blocks: int
    open: int
    tables: Mapping[str, Mapping[int, float]]

    def seconds(self, widths: Widths) -> float:
        """Expected seconds of a model with these widths. The savings of all kinds are added."""
        saved = sum(self.block - _between(table, widths[kind]) for kind, table in self.tables.items())
        saved = min(saved, (1.0 - LEAST_LEFT) * self.block)  # times are noisy, and a block's time is never 0
        return self.outside + widths.get("blocks", self.blocks) * self.block - self.open * saved

    def speedup(self, widths: Widths) -> float:
        """Speedup over the dense model."""
        return (self.outside + self.blocks * self.block) / self.seconds(widths)


@dataclass(frozen=True, kw_only=True)
class SpeedGoal:
    """A target speedup.

    Attributes:
        asked: requested speedup over the dense model.
        work: timed work.
        times: times by width, on this machine.
    """

    asked: float
    work: TimedWork
    times: WidthTimes


def _between(table: Mapping[int, float], width: int) -> float:
    """Seconds at a width, interpolated linearly between timed widths."""
    known = sorted(table)
    above = next((index for index, other in enumerate(known) if other >= width), len(known) - 1)
    low, high = known[max(above - 1, 0)], known[above]
    if low == high:
        return table[high]
    return table[low] + (table[high] - table[low]) * (width - low) / (high - low)


def time_widths(
    models: ShapeModels, legal: LegalWidths, work: TimedWork, *, dtype: torch.dtype, device: torch.device
) -> WidthTimes:
    """Time one-block models with random weights: dense, and with a smaller width of one kind each.

    If the blocks of a model differ, all blocks are timed together.

    Args:
        models: builds the shapes.
        legal: allowed widths of the result.
        work: work to time.
        dtype: dtype of the models.
        device: device of the timing.

    Raises:
        ValueError: memory is too small, or the model cannot do the work.
    """
    structure = models.structure
    if "hidden" in structure.kinds:
        raise ValueError("A speed-up is not supported for the hidden size, whose times are not measured. Pass a ratio.")
    kinds = [kind for kind in structure.kinds if kind != "blocks"]
    depth = len(structure.blocks)
    few, more = (1, min(3, depth)) if models.alike and depth > 1 else (depth, depth)
    with torch.random.fork_rng(), torch.device(device):
        dense, deep = (
            random_model(models.plain(blocks, dtype)[0].config, models.source.auto_class, dtype).eval()
            for blocks in (few, more)
        )
    full = {kind: widest(structure, kind) for kind in kinds}
    protected = tuple(sorted(structure.protected))
    narrow = {
        (kind, width): {**full, kind: width}
        for kind in kinds
        for width in _timed_widths(kind, widest(structure, kind), legal)
    }
    _check_room(dense, len(narrow), device)
    timed: dict[object, PreTrainedModel] = {"dense": dense, "deep": deep}
    for key, widths in narrow.items():
        timed[key] = _cut_copy(dense, kinds, widths, legal, protected if few == depth else ())
    seconds = _quickest({key: work.contender(model) for key, model in timed.items()})
    block = (seconds["deep"] - seconds["dense"]) / (more - few) if more > few else seconds["dense"]
    block = max(block, 1e-9)
    outside = max(seconds["dense"] - block, 0.0)
    tables: dict[str, dict[int, float]] = {kind: {full[kind]: block} for kind in kinds}
    for key in narrow:
        kind, width = key
        tables[kind][width] = min(max(seconds[key] - outside, 0.0), block)
    alike = more > few
    return WidthTimes(
        work=work.in_words(dense),
        outside=outside,
        block=block,
        blocks=depth if alike else 1,
        open=depth - len(protected) if alike else 1,
        tables=tables,
    )


def work_latency(models: Mapping[str, PreTrainedModel], work: TimedWork) -> dict[str, float]:
    """Median seconds of some work, for models timed in turns."""
    contenders = {name: work.contender(model) for name, model in models.items()}
    return {name: times.median for name, times in in_turns(contenders, repeats=10, warmup=WARMUP).items()}


def _timed_widths(kind: str, most: int, legal: LegalWidths) -> Iterator[int]:
    """Some of the allowed widths of a kind, from the smallest on, without the dense one."""
    if kind in legal.counts:
        smaller: Sequence[int] = [count for count in legal.counts[kind] if count < most]
    else:
        smaller = range(legal.multiples[kind], most, legal.multiples[kind])
    if len(smaller) <= TIMED_WIDTHS:
        yield from smaller
        return
    yield from sorted({smaller[round(step * (len(smaller) - 1) / (TIMED_WIDTHS - 1))] for step in range(TIMED_WIDTHS)})


def _cut_copy(
    dense: PreTrainedModel, kinds: Sequence[str], widths: Widths, legal: LegalWidths, keep_layers: Sequence[int]
) -> PreTrainedModel:
    """A copy with other widths that shares embeddings and head with the original."""
    shared = {}
    for get in (dense.get_input_embeddings, dense.get_output_embeddings):
        with suppress(NotImplementedError):  # some models that read images
            end = get()
            shared[id(end)] = end
    model = copy.deepcopy(dense, shared)
    structure = describe(model, list(kinds), tuple(keep_layers))
    full = Plan.full(structure)
    equal = {dimension.name: torch.ones(dimension.num_groups) for dimension in structure}
    to = allocate(structure, full, equal, 1.0, replace(legal, only=(widths,)), "uniform")
    slice_(model, structure, full, to)
    return model


def _check_room(model: nn.Module, copies: int, device: torch.device) -> None:
    needed = copies * sum(parameter.nbytes for parameter in model.parameters())
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"Timing blocks of {copies} widths takes {needed / 1e9:.3g} GB, and {device} has {free / 1e9:.3g} GB free. "
            "Pass a ratio instead of a speed-up."
        )


def _quickest(contenders: Mapping[object, TurnTaker]) -> dict[object, float]:
    """Seconds of the fastest call of each, because other load on the machine can only add to them."""
    named = {str(key): contender for key, contender in contenders.items()}
    first = in_turns(named, repeats=1, warmup=WARMUP)
    once = sum(times.median * contender.steps for times, contender in zip(first.values(), named.values(), strict=True))
    repeats = int(min(max(SECONDS / max(once, 1e-9), LEAST), MOST))
    found = in_turns(named, repeats=repeats, warmup=0)
    return {key: found[str(key)].least for key in contenders}
