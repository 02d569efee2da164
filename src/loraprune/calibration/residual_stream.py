"""The residual stream of the uncut model as the target of a refit, which then makes up for earlier cuts as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration, LayerwisePass, token_sequences
from loraprune.calibration.features import ALL_ROWS, part_of
from loraprune.calibration.least_squares import Moments
from loraprune.layers.axes import is_matrix
from loraprune.layers.unwrap import base_layer, base_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from loraprune.structure.dimensions import Structure

_TOLERANCE = 1e-2
"""How far a block's output may be from what is taken for its stream, as a share of what the block adds to it."""


class NoStreamError(ValueError):
    """A model's blocks do not simply add what their consumers give to a residual stream."""


def stream_writers(model: nn.Module, structure: Structure, layer: int) -> list[str]:
    """Layers of a block that write to the residual stream: the consumers of all of its dimensions, in their order."""
    block = structure.blocks[layer]
    writers = dict.fromkeys(
        f"{block}.{dimension.consumer.module}"
        for stack in structure.spec.stacks
        for dimension in stack.dimensions
        if dimension.consumer.axis == "input"
    )
    modules = dict(base_model(model).named_modules())
    return [name for name in writers if name in modules and is_matrix(modules[name])]


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The last output of each of some layers."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        # A copy: some blocks (Falcon's) add to an output in place.
        return lambda module, args, output: found.__setitem__(name, output.clone())

    with ExitStack() as stack:
        for name in names:
            handle = base_model(model).get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield found


@torch.no_grad()
def has_stream(
    model: nn.Module, structure: Structure, calibration: Calibration, device: torch.device | None = None
) -> bool:
    """Whether the blocks of a model simply add what their consumers give to a residual stream: seen on one sequence."""
    sequences = token_sequences(structure, calibration)
    if not sequences:
        return False
    targets = StreamTargets(model, structure, sequences[:1], device)
    try:
        for layer in range(len(structure.blocks)):
            targets.begin_block(layer)
    except NoStreamError:
        return False
    return True


class StreamTargets:
    """Hidden states of the uncut model on the calibration data, one block ahead of the cuts.

    Each block is run on them before it is cut, so that no second model is needed. Memory: the hidden states of the
    calibration set once for the uncut stream, and once more in 32 bits for each consumer of the present block.

    Args:
        model: not cut yet.
        structure: its description, with a decoder.
        sequences: token ids, 1-D tensors.
        device: to compute on, where that is not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        sequences: Sequence[torch.Tensor],
        device: torch.device | None = None,
    ) -> None:
        self._model, self._structure = model, structure
        self._dense = LayerwisePass(model, structure, sequences, device)
        self._after: dict[str, list[torch.Tensor]] = {}
        self._writers: list[str] = []

    @torch.no_grad()
    def begin_block(self, layer: int) -> None:
        """Run a block on the uncut stream, before it is cut.

        Raises:
            NoStreamError: what the block gives is not the stream with the outputs of its consumers added.
        """
        self._writers = stream_writers(self._model, self._structure, layer)
        self._after = {name: [] for name in self._writers}
        for hidden, output, outputs in self._dense.advance_watching(lambda: _outputs(self._model, self._writers)):
            stream = hidden.float()
            for name in self._writers:
                if name not in outputs:
                    raise NoStreamError(f"{name} was not reached by the calibration data.")
                stream = stream + outputs[name].view_as(stream).to(stream)
                self._after[name].append(stream)
            added = torch.linalg.vector_norm(output.float() - hidden.float())
            rounding = 2 * torch.finfo(output.dtype).eps * torch.linalg.vector_norm(output.float())
            if not torch.linalg.vector_norm(stream - output.float()) <= _TOLERANCE * added + rounding:
                raise NoStreamError(
                    "Blocks of this model do more than to add their layers' outputs to a residual stream (first seen "
                    f"in {self._structure.blocks[layer]})."
                )

    @torch.no_grad()
    def statistics(self, cut: LayerwisePass, name: str, rows: slice = ALL_ROWS) -> Moments:
        """What a refit of one consumer needs.

        Args:
            cut: the pass over the model that is being cut, arrived at the same block.
            name: of the consumer, in the block that was begun.
            rows: of its inputs, counted over all batches, that are looked at.

        Returns:
            Of what the consumer should give, and its inputs as they are now. Its bias is not part of ``t``.
        """
        before = self._writers[: self._writers.index(name)]
        bias = getattr(base_layer(base_model(self._model).get_submodule(name)), "bias", None)
        cross, moment, square = torch.zeros(()), torch.zeros(()), torch.zeros(())
        seen = count = 0
        with _outputs(self._model, before) as outputs:
            for (args, hidden), target in zip(cut.entering(name), self._after[name], strict=True):
                x = args[0].flatten(0, -2).float()
                # In 32 bits: a stream may be hundreds of times as large as what is added to it.
                wanted = target.to(x) - hidden.to(x)
                for writer in before:
                    wanted = wanted - outputs[writer].view_as(wanted).to(x)
                wanted = wanted.flatten(0, -2)
                if bias is not None:
                    wanted = wanted - bias.float()
                part = part_of(rows, seen)
                seen += len(x)
                wanted, x = wanted[part], x[part]
                cross = cross.to(x.device) + wanted.T @ x
                moment = moment.to(x.device) + x.T @ x
                square = square.to(x.device) + wanted.square().sum(dtype=torch.float64)
                count += len(x)
        return Moments(moment / count, count, cross / count, float(square) / count)
