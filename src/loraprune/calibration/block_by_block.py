"""A pass over the blocks of a model on calibration data, with cached hidden states or by running the whole model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import send_to_device
from torch import nn

from loraprune.calibration.features import ALL_ROWS, FeatureStatistics, part_of, watched_features
from loraprune.calibration.finished_parts import finished_part, recorded, replayed
from loraprune.calibration.routed_tokens import RoutedTokens
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.processes.ranks import num_processes, own_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.structure.dimensions import Structure

TOKENS_PER_BATCH = 8192

Watched = TypeVar("Watched")

Calibration = Sequence["torch.Tensor | Mapping[str, torch.Tensor]"]
"""Token ids, 1-D tensors of any length; or mappings of a model's inputs, one per batch."""


@dataclass
class BlockCalls:
    """Inputs of the blocks for one batch of calibration sequences.

    Attributes:
        hidden: hidden states that enter the next block, shape ``(batch, tokens, hidden)``.
        arguments: other arguments of each block, by position and by name (masks and position embeddings; shared
            tensors, not copies).
        finished: outputs of the parts of the current block that no longer change.
    """

    hidden: torch.Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    finished: dict[str, Any] = field(default_factory=dict)


CACHES = ("past_key_values", "past_key_value", "layer_past")


class _Recorder(nn.Module):
    """Replaces a block: records its arguments and returns the hidden states unchanged."""

    def __init__(self, block: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], as_tuple: bool) -> None:
        super().__init__()
        self._as_tuple = as_tuple
        self._calls = calls
        # A decoder may read attributes of its blocks, such as the type of attention.
        self.__dict__["_block"] = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._calls.append((args, {**kwargs, **{name: None for name in CACHES if name in kwargs}}))
        self.hidden = hidden_states
        # Some decoders take the first entry of a block's output, others take the whole output.
        return (hidden_states, None) if self._as_tuple else hidden_states


def equal_length_batches(sequences: Sequence[torch.Tensor], tokens: int = TOKENS_PER_BATCH) -> list[torch.Tensor]:
    """Return batches of sequences of equal length, unpadded; longest first, about ``tokens`` tokens each."""
    batches: list[torch.Tensor] = []
    by_length = sorted(sequences, key=len, reverse=True)
    for length, group in groupby(by_length, key=len):
        batches += torch.stack(list(group)).split(max(1, tokens // length))
    return batches


def _record(model: nn.Module, structure: Structure, batch: torch.Tensor) -> BlockCalls:
    """Run everything before the first block on a batch, and record the arguments of each block."""
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
    """Ends a run once the layer has been reached."""


def inputs_of(model: nn.Module, module_name: str, runs: Sequence[Callable[[], Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the inputs of a layer, from runs that end as soon as they reach it."""
    reached: list[tuple[Any, ...]] = []
    found = False

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        reached.append(args)
        raise _Stop

    # Before any mask on the layer, so the result covers all inputs.
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


class CalibrationPass(ABC):
    """Runs a model on calibration data and collects the inputs of one of its layers.

    Attributes:
        is_shared: whether each process of a run has a part of the data; statistics cover all of the data.
        first_row: number of the first row (token) in this process's part.
    """

    _model: PreTrainedModel
    _known: dict[str, FeatureStatistics] | None = None
    is_shared = False
    first_row = 0

    @abstractmethod
    def _runs(self) -> Sequence[Callable[[], Any]]:
        """Return calls that each run the model on a part of the data, at least up to the layer of interest."""

    @property
    @abstractmethod
    def num_sequences(self) -> int:
        """Number of sequences (or images)."""

    def advance(self) -> None:  # noqa: B027 (a pass that runs whole models has no position)
        """Run the current block in its present state and move on to the next one."""

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Collect the statistics of all inputs of a layer at most once; the model must not change meanwhile."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def know(self, module_name: str, statistics: FeatureStatistics) -> None:
        """Take statistics of all inputs of a layer that were collected elsewhere, see :meth:`unchanged`."""
        if self._known is not None:
            self._known[module_name] = statistics

    @torch.no_grad()
    def features(self, module_name: str, *, moment: bool, rows: slice = ALL_ROWS) -> FeatureStatistics:
        """Return statistics of the inputs of a layer of the current model; runs end as soon as they reach the layer.

        Args:
            module_name: name of the layer, in the current block of the pass.
            moment: whether to collect the second moment as well.
            rows: rows of the inputs to use, counted over all runs.
        """
        known = (self._known or {}).get(module_name) if rows == ALL_ROWS else None
        if known is not None and known.with_moment >= moment:
            return known
        statistics, seen = FeatureStatistics(moment=moment), self.first_row
        for args in inputs_of(self._model, module_name, self._runs()):
            inputs = args[0].flatten(0, -2)
            statistics.add(inputs[part_of(rows, seen)])
            seen += len(inputs)
        if self.is_shared:
            statistics.over_processes_()
        if rows == ALL_ROWS:
            self.know(module_name, statistics)
        return statistics

    @torch.no_grad()
    def features_of(self, module_names: Sequence[str], *, moment: bool) -> dict[str, FeatureStatistics]:
        """Return the same for several layers in one run of the block; layers with the same input share one object.

        A layer that no calibration data reached has no entry.
        """
        found = watched_features(self._model, module_names, self._runs(), moment=moment)
        if self.is_shared:
            for statistics in {id(found[name]): found[name] for name in module_names if name in found}.values():
                statistics.over_processes_()
        return found

    @torch.no_grad()
    def routed_tokens(self, module_name: str) -> RoutedTokens:
        """Return the inputs of stacked experts in the current model."""
        calls = list(inputs_of(self._model, module_name, self._runs()))
        layer: Any = base_layer(self._model.get_submodule(module_name))
        return RoutedTokens(calls, len(layer.down_proj), shared=self.is_shared)


class LayerwisePass(CalibrationPass):
    """Hidden states of calibration data, moved forward one decoder block at a time.

    Memory: the hidden states of all calibration data on the model's device, and what the caller keeps for one
    block. The model must be in evaluation mode; no gradients are kept. Several processes of one run each take a part
    of the sequences if there are enough. All of them then have to make the same calls.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: structure of the model.
        sequences: token ids, 1-D tensors of any length.
        device: device to compute on, if it is not the model's. Weights and hidden states then stay where the model is.
            The device holds one block, one batch, and the requested results (statistics; for stacked experts, the
            hidden states that are routed to them).
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        sequences: Sequence[torch.Tensor],
        device: torch.device | None = None,
    ) -> None:
        if not sequences:
            raise ValueError("A calibration set needs at least one sequence.")
        self._model = base_model(model)
        self._structure = structure
        self._home = next(self._model.parameters()).device
        self._device = self._home if device is None else device
        self._sequences = len(sequences)
        self.is_shared = len(sequences) >= num_processes() > 1
        if self.is_shared:
            ordered = sorted(sequences, key=len, reverse=True)  # in the order of the batches
            mine = own_part(len(ordered))
            self.first_row = sum(len(sequence) for sequence in ordered[: mine.start])
            sequences = ordered[mine]
        self._calls = [
            _record(self._model, structure, batch.to(self._home)) for batch in equal_length_batches(sequences)
        ]
        self.layer = 0
        self._finished: list[str] = []

    @property
    def num_sequences(self) -> int:
        """Number of sequences in all processes."""
        return self._sequences

    def _block(self) -> nn.Module:
        return self._model.get_submodule(self._structure.blocks[self.layer])

    def finish(self, module_name: str, unfinished: Iterable[str] = ()) -> None:
        """Announce that a layer of the current block will not change any more.

        If a further run reaches the end of its part of the block (attention, for example), the output of this part is
        kept, and :meth:`advance` reuses it.

        Args:
            module_name: name of the layer.
            unfinished: names of layers of the block that will change; a part with one of them is not reused.
        """
        part = finished_part(self._structure.blocks[self.layer], module_name, unfinished)
        if part is not None:
            self._finished.append(part)

    def _run(self, calls: BlockCalls, *, last: bool = False) -> torch.Tensor:
        positional, named = send_to_device(calls.arguments[self.layer], self._device)
        block = self._block()
        moves = self._device != self._home  # a model that is spread over devices is not moved
        if moves:
            block.to(self._device)
        if last:
            reusing = replayed(block, calls.finished, self._device if moves else None)
        else:
            most = 2 * calls.hidden.numel()
            reusing = recorded(block, self._finished, calls.finished, most, self._home if moves else None)
        with reusing:
            output = block(calls.hidden.to(self._device), *positional, **named)
        return output[0] if isinstance(output, tuple) else output

    def _runs(self) -> Sequence[Callable[[], Any]]:
        """Return the current block, once per batch."""
        return [partial(self._run, calls) for calls in self._calls]

    @torch.no_grad()
    def advance(self) -> None:
        """Run the current block in its present state and move on to the next one."""
        for _ in self.advance_watching(nullcontext):
            pass

    def advance_watching(
        self, watch: Callable[[], AbstractContextManager[Watched]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Watched]]:
        """Same as :meth:`advance`, batch by batch, with access to each batch.

        Args:
            watch: returns a context that is entered for each batch; its value is yielded.

        Yields:
            Hidden states before and after the block, where they are stored, and the value of ``watch``.
        """
        for calls in self._calls:
            before = calls.hidden
            with watch() as watched:
                calls.hidden = self._run(calls, last=True).to(self._home)
            calls.arguments[self.layer] = ((), {})
            calls.finished.clear()
            yield before, calls.hidden, watched
        if self._device != self._home:
            self._block().to(self._home)
        self._finished.clear()
        self.layer += 1

    def leave_out(self) -> None:
        """Move on to the next block, skipping the current one."""
        for calls in self._calls:
            calls.arguments[self.layer] = ((), {})
            calls.finished.clear()
        self._finished.clear()
        self.layer += 1

    def entering(self, module_name: str) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Yield the inputs of a layer of the current block, batch by batch, with the hidden states before the block."""
        for args, calls in zip(inputs_of(self._model, module_name, self._runs()), self._calls, strict=True):
            yield args, calls.hidden


class WholeModelPass(CalibrationPass):
    """Same for models whose blocks pass on more than hidden states: every request runs the model up to the layer.

    Slower than :class:`LayerwisePass` (up to one forward pass per request), but correct for any model.

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

    @property
    def num_sequences(self) -> int:
        """Number of sequences (or images)."""
        return sum(len(next(iter(batch.values()))) for batch in self._batches)

    def _runs(self) -> Sequence[Callable[[], Any]]:
        """Return the whole model, once per batch."""
        return [partial(self._run, batch) for batch in self._batches]

    def _run(self, batch: Mapping[str, Any]) -> None:
        model: Any = self._model
        model(**send_to_device(dict(batch), next(model.parameters()).device))


def token_sequences(structure: Structure, calibration: Calibration) -> list[torch.Tensor] | None:
    """Return calibration data that can be passed from block to block; None if whole models have to run."""
    sequences = [item for item in calibration if isinstance(item, torch.Tensor)]
    if structure.spec.decoder is None or len(sequences) < len(calibration):
        return None
    return sequences


def calibration_pass(
    model: nn.Module, structure: Structure, calibration: Calibration, device: torch.device | None = None
) -> CalibrationPass:
    """Start the pass that suits a model and its calibration data."""
    sequences = token_sequences(structure, calibration)
    if sequences is None:
        return WholeModelPass(model, calibration)
    return LayerwisePass(model, structure, sequences, device)
