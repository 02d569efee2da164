"""One pass over the decoder blocks with cached hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.wrapping import base_model

if TYPE_CHECKING:
    from loraprune.structure import Structure

TOKENS_PER_BATCH = 8192


@dataclass
class BlockCalls:
    """What the blocks are called with for one batch of calibration sequences.

    Attributes:
        hidden: hidden states that enter the next block, shape ``(batch, tokens, hidden)``.
        arguments: keyword arguments of each block (masks and position embeddings; shared tensors, not copies).
    """

    hidden: torch.Tensor
    arguments: list[dict[str, Any]] = field(default_factory=list)


class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is called with and passes the hidden states on."""

    def __init__(self, block: nn.Module, calls: list[dict[str, Any]]) -> None:
        super().__init__()
        self._calls = calls
        # A decoder may read attributes of its blocks (the type of attention, say).
        self.__dict__["_block"] = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args:
            raise RuntimeError("The decoder passes positional arguments to its blocks; only keywords are understood.")
        self._calls.append({**kwargs, "past_key_values": None, "use_cache": False})
        self.hidden = hidden_states
        return hidden_states


def equal_length_batches(sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Batches of sequences of equal length, so that nothing is padded; longest first, about 8192 tokens each."""
    batches: list[torch.Tensor] = []
    by_length = sorted(sequences, key=len, reverse=True)
    for length, group in groupby(by_length, key=len):
        batches += torch.stack(list(group)).split(max(1, TOKENS_PER_BATCH // length))
    return batches


def _record(model: nn.Module, structure: Structure, batch: torch.Tensor) -> BlockCalls:
    """Run everything before the first block on a batch, and learn how each block is called."""
    decoder = model.get_submodule(structure.spec.decoder)
    parent_name, _, list_name = structure.spec.blocks.rpartition(".")
    parent = model.get_submodule(parent_name)
    blocks = getattr(parent, list_name)
    arguments: list[dict[str, Any]] = []
    recorders = nn.ModuleList([_Recorder(block, arguments) for block in blocks])
    setattr(parent, list_name, recorders)
    try:
        decoder(input_ids=batch, use_cache=False)
    finally:
        setattr(parent, list_name, blocks)
    first: Any = recorders[0]
    return BlockCalls(hidden=first.hidden, arguments=arguments)


class _Stop(Exception):  # noqa: N818 (not an error)
    """Leaves a block once its consumer has been reached."""


class LayerwisePass:
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
        output = block(calls.hidden, **calls.arguments[self.layer])
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def second_moment(self, module_name: str) -> torch.Tensor:
        """``XᵀX / tokens`` of the inputs of a layer in the current block, float32, shape ``(in, in)``."""
        total: torch.Tensor | None = None
        tokens = 0

        def gather(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal total, tokens
            inputs = args[0].flatten(0, -2).float()
            product = inputs.T @ inputs
            total = product if total is None else total.add_(product)
            tokens += inputs.shape[0]
            raise _Stop

        handle = self._model.get_submodule(module_name).register_forward_pre_hook(gather)
        try:
            for calls in self._calls:
                with suppress(_Stop):
                    self._run(calls)
        finally:
            handle.remove()
        if total is None:
            raise RuntimeError(f"{module_name} was not reached in block {self.layer}.")
        return total.div_(tokens)

    @torch.no_grad()
    def advance(self) -> None:
        """Run the current block as it is now and go to the next one."""
        for calls in self._calls:
            calls.hidden = self._run(calls)
            calls.arguments[self.layer] = {}
        self.layer += 1
