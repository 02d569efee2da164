"""One pass over the blocks of a model on calibration data: with cached hidden states, or by running whole models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.routed_tokens import RoutedTokens
from loraprune.wrapping import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.dimensions import Structure

TOKENS_PER_BATCH = 8192

Calibration = Sequence["torch.Tensor | Mapping[str, torch.Tensor]"]
"""Token ids, 1-D tensors of any lengths; or mappings of a model's inputs, each a batch."""


@dataclass
class BlockCalls:
    """What the blocks are called with for one batch of calibration sequences.

    Attributes:
        hidden: hidden states that enter the next block, shape ``(batch, tokens, hidden)``.
        arguments: what each block is called with beside them, by position and by name (masks and position embeddings;
            shared tensors, not copies).
    """

    hidden: torch.Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


CACHES = ("past_key_values", "past_key_value", "layer_past")


class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is called with and passes the hidden states on."""

    def __init__(self, block: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], as_tuple: bool) -> None:
        super().__init__()
        self._as_tuple = as_tuple
        self._calls = calls
        # A decoder may read attributes of its blocks (the type of attention, say).
        self.__dict__["_block"] = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._calls.append((args, {**kwargs, **{name: None for name in CACHES if name in kwargs}}))
        self.hidden = hidden_states
        # Some decoders take the first entry of what a block returns, some take it whole.
        return (hidden_states, None) if self._as_tuple else hidden_states


def equal_length_batches(sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Batches of sequences of equal length, so that nothing is padded; longest first, about 8192 tokens each."""
    batches: list[torch.Tensor] = []
    by_length = sorted(sequences, key=len, reverse=True)
    for length, group in groupby(by_length, key=len):
        batches += torch.stack(list(group)).split(max(1, TOKENS_PER_BATCH // length))
    return batches


def _record(model: nn.Module, structure: Structure, batch: torch.Tensor) -> BlockCalls:
    """Run everything before the first block on a batch, and learn how each block is called."""
    assert structure.spec.decoder is not None
    decoder = model.get_submodule(structure.spec.decoder)
    parent_name, _, list_name = structure.blocks[0].rpartition(".")[0].rpartition(".")
    parent = model.get_submodule(parent_name)
    blocks = getattr(parent, list_name)
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    as_tuple = structure.spec.blocks_return_tuples
    recorders = nn.ModuleList([_Recorder(block, arguments, as_tuple) for block in blocks])
    setattr(parent, list_name, recorders)
    try:
        decoder(input_ids=batch, use_cache=False)
    finally:
        setattr(parent, list_name, blocks)
    first: Any = recorders[0]
    return BlockCalls(hidden=first.hidden, arguments=arguments)


class _Stop(Exception):  # noqa: N818 (not an error)
    """Leaves a block once its consumer has been reached."""


def _inputs_of(model: nn.Module, module_name: str, runs: Sequence[Callable[[], Any]]) -> Iterator[tuple[Any, ...]]:
    """What a layer is called with, over runs that are left as soon as they reach it."""
    reached: list[tuple[Any, ...]] = []
    found = False

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        reached.append(args)
        raise _Stop

    # Before any mask on the layer: what comes of it is that of all inputs.
    handle = model.get_submodule(module_name).register_forward_pre_hook(keep, prepend=True)
    try:
        for run in runs:
            with suppress(_Stop):
                run()
            if reached:
                found = True
                yield reached.pop()
    finally:
        handle.remove()
    if not found:
        raise RuntimeError(f"{module_name} was not reached by the calibration data.")


def _mean_outer_product(inputs: Iterable[tuple[Any, ...]]) -> torch.Tensor:
    total: torch.Tensor | None = None
    rows = 0
    for args in inputs:
        x = args[0].flatten(0, -2).float()
        product = x.T @ x
        total = product if total is None else total.add_(product)
        rows += x.shape[0]
    assert total is not None
    return total.div_(rows)


class CalibrationPass(ABC):
    """A way to run a model on calibration data and to see what enters one of its layers."""

    _model: PreTrainedModel

    @abstractmethod
    def _runs(self) -> Sequence[Callable[[], Any]]:
        """Calls that each run the model on a part of the data, at least up to the layer that is looked at."""

    @torch.no_grad()
    def second_moment(self, module_name: str) -> torch.Tensor:
        """``XᵀX / rows`` of the inputs of a layer as the model is now, float32, shape ``(in, in)``."""
        return _mean_outer_product(_inputs_of(self._model, module_name, self._runs()))

    @torch.no_grad()
    def routed_tokens(self, module_name: str) -> RoutedTokens:
        """What stacked experts are called with as the model is now."""
        return RoutedTokens(list(_inputs_of(self._model, module_name, self._runs())))


class LayerwisePass(CalibrationPass):
    """Hidden states of a calibration set, moved forward one decoder block at a time.

    Memory: the hidden states of the calibration set on the model's device, and whatever the caller keeps of one
    block. The model must be in evaluation mode; no gradient is kept.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: its description.
        sequences: token ids, 1-D tensors of any lengths.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, structure: Structure, sequences: Sequence[torch.Tensor]) -> None:
        if not sequences:
            raise ValueError("A calibration set needs at least one sequence.")
        self._model = base_model(model)
        self._structure = structure
        device = next(self._model.parameters()).device
        self._calls = [_record(self._model, structure, batch.to(device)) for batch in equal_length_batches(sequences)]
        self.layer = 0

    def _run(self, calls: BlockCalls) -> torch.Tensor:
        block = self._model.get_submodule(self._structure.blocks[self.layer])
        positional, named = calls.arguments[self.layer]
        output = block(calls.hidden, *positional, **named)
        return output[0] if isinstance(output, tuple) else output

    def _runs(self) -> Sequence[Callable[[], Any]]:
        """The current block, once for each batch."""
        return [partial(self._run, calls) for calls in self._calls]

    @torch.no_grad()
    def advance(self) -> None:
        """Run the current block as it is now and go to the next one."""
        for calls in self._calls:
            calls.hidden = self._run(calls)
            calls.arguments[self.layer] = ((), {})
        self.layer += 1


class WholeModelPass(CalibrationPass):
    """The same for models whose blocks hand each other more than hidden states: every moment runs the model to there.

    Slower than :class:`LayerwisePass` (half a forward pass a layer), and right for any model.

    Args:
        model: the model or the ``PeftModel`` around it, in evaluation mode.
        calibration: token ids, or mappings of the model's inputs.
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        if not calibration:
            raise ValueError("A calibration set needs at least one sequence.")
        self._model = base_model(model)
        sequences = [item for item in calibration if isinstance(item, torch.Tensor)]
        self._batches: list[Mapping[str, Any]] = [{"input_ids": batch} for batch in equal_length_batches(sequences)]
        self._batches += [item for item in calibration if not isinstance(item, torch.Tensor)]

    def _runs(self) -> Sequence[Callable[[], Any]]:
        """The whole model, once for each batch."""
        return [partial(self._run, batch) for batch in self._batches]

    def _run(self, batch: Mapping[str, Any]) -> None:
        model: Any = self._model
        device = next(model.parameters()).device
        model(**{name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()})
