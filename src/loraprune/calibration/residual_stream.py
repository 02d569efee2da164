"""The residual stream of the uncut model as the target of a refit, which then makes up for earlier cuts as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration, LayerwisePass, token_sequences
from loraprune.calibration.features import ALL_ROWS, part_of
from loraprune.calibration.least_squares import Moments, combined
from loraprune.layers.axes import axis_length, is_matrix
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.processes.ranks import on_any, summed, total

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


def stream_readers(model: nn.Module, structure: Structure, layer: int) -> list[str]:
    """Linear layers of a block that read what is as wide as the residual stream, and do not write to it."""
    block, writers = structure.blocks[layer], stream_writers(model, structure, layer)
    return [
        f"{block}.{name}"
        for name, module in base_model(model).get_submodule(block).named_modules()
        if f"{block}.{name}" not in writers
        and not _is_inside_an_adapter(name)
        and is_matrix(module)
        and axis_length(module, "input") == structure.hidden_size
    ]


def _is_inside_an_adapter(name: str) -> bool:
    parts = name.split(".")
    return "base_layer" in parts or any(part.startswith("lora_") for part in parts)


@dataclass
class _Reading:
    """What layers of one block read, in the order in which they are called.

    Attributes:
        called: readers and writers of the first run.
        leaders: of each reader, the first one that was called with the same tensor.
        inputs: of each leader, batch by batch.
    """

    called: list[str] = field(default_factory=list)
    leaders: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def groups_before(self, writer: str, writers: Sequence[str]) -> list[tuple[str, ...]]:
        """Readers called between a writer and the writer before it; those of one tensor together."""
        groups: dict[str, list[str]] = {}
        for name in self.called[: self.called.index(writer)]:
            if name in writers:
                groups = {}
            else:
                groups.setdefault(self.leaders[name], []).append(name)
        return [tuple(group) for group in groups.values()]

    @contextmanager
    def watching(self, model: nn.Module, readers: Sequence[str], writers: Sequence[str]) -> Iterator[None]:
        """Note what enters the readers during one run of the block."""
        seen: list[tuple[torch.Tensor, str]] = []
        first = not self.called

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                if first:
                    self.called.append(name)
                if name in writers:
                    return
                leader = next((other for tensor, other in seen if tensor is args[0]), None)
                if first:
                    self.leaders[name] = leader or name
                if leader is None:
                    seen.append((args[0], name))
                if self.leaders.get(name) == name:
                    self.inputs.setdefault(name, []).append(args[0].detach())

            return hook

        with ExitStack() as stack:
            for name in (*readers, *writers):
                handle = base_model(model).get_submodule(name).register_forward_pre_hook(note(name), prepend=True)
                stack.callback(handle.remove)
            yield


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
        readers: also note what enters the layers that read the stream.

    Attributes:
        writers: layers of the present block that write to the stream, in the order of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        sequences: Sequence[torch.Tensor],
        device: torch.device | None = None,
        *,
        readers: bool = False,
    ) -> None:
        self._model, self._structure, self._with_readers = model, structure, readers
        self._reading = _Reading()
        self._home = next(model.parameters()).device
        self._dense = LayerwisePass(model, structure, sequences, device)
        self._after: dict[str, list[torch.Tensor]] = {}
        self._halves: dict[tuple[int, int], Moments] = {}
        self.writers: list[str] = []

    @torch.no_grad()
    def begin_block(self, layer: int) -> None:
        """Run a block on the uncut stream, before it is cut.

        Raises:
            NoStreamError: what the block gives is not the stream with the outputs of its consumers added.
        """
        self.writers = stream_writers(self._model, self._structure, layer)
        self._after = {name: [] for name in self.writers}
        self._reading = _Reading()
        readers = stream_readers(self._model, self._structure, layer) if self._with_readers else []
        fault = None
        for hidden, output, outputs in self._dense.advance_watching(lambda: self._watched(readers)):
            stream = hidden.float()
            for name in self.writers:
                if name not in outputs:
                    raise NoStreamError(f"{name} was not reached by the calibration data.")
                stream = stream + outputs[name].view_as(stream).to(stream)
                self._after[name].append(stream)
            added = torch.linalg.vector_norm(output.float() - hidden.float())
            rounding = 2 * torch.finfo(output.dtype).eps * torch.linalg.vector_norm(output.float())
            if not torch.linalg.vector_norm(stream - output.float()) <= _TOLERANCE * added + rounding:
                fault = NoStreamError(
                    "Blocks of this model do more than to add their layers' outputs to a residual stream (first seen "
                    f"in {self._structure.blocks[layer]})."
                )
                if not self._dense.is_shared:
                    break
        if on_any(fault is not None):
            raise fault or NoStreamError("Another process has seen a block that does more than to add to a stream.")

    @torch.no_grad()
    def look_past_block(self) -> None:
        """Run the next block, which is to go: the last layer before it that writes to the stream makes up for it."""
        for number, (_, output, _) in enumerate(self._dense.advance_watching(nullcontext)):
            if self.writers:
                self._after[self.writers[-1]][number] = output.float()

    @contextmanager
    def _watched(self, readers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Outputs of the writers during one run of the block; what enters the readers is noted beside them."""
        with ExitStack() as stack:
            if readers:
                stack.enter_context(self._reading.watching(self._model, readers, self.writers))
            yield stack.enter_context(_outputs(self._model, self.writers))
        for inputs in self._reading.inputs.values():
            inputs[-1] = inputs[-1].to(self._home)

    def readers_before(self, writer: str) -> list[tuple[str, ...]]:
        """Readers of the present block between a writer and the one before it; those that read one tensor together."""
        return self._reading.groups_before(writer, self.writers) if self._reading.called else []

    @torch.no_grad()
    def reader_statistics(
        self, cut: LayerwisePass, names: Sequence[str], rows: slice = ALL_ROWS
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What a refit of readers needs.

        Args:
            cut: the pass over the model that is being cut, arrived at the same block.
            names: of readers of one tensor; see :meth:`readers_before`.
            rows: of its rows, counted over all batches, that are looked at.

        Returns:
            Of what they read now, ``x``, and read in the uncut model, ``x*``: ``E[x xᵀ]`` and ``E[x* xᵀ]``, float32,
            shape ``(hidden, hidden)``, and the number of rows.
        """
        leader = self._reading.leaders[names[0]]
        moment, between = torch.zeros(()), torch.zeros(())
        seen, count = cut.first_row, 0
        for (args, _), dense in zip(cut.entering(leader), self._reading.inputs[leader], strict=True):
            x = args[0].flatten(0, -2)
            part = part_of(rows, seen)
            seen += len(x)
            wanted, x = dense.to(x.device).flatten(0, -2)[part].float(), x[part].float()
            moment = moment.to(x.device) + x.T @ x
            between = between.to(x.device) + wanted.T @ x
            count += len(x)
        if cut.is_shared:
            moment, between, count = summed(moment), summed(between), total(count)
        return moment / count, between / count, count

    @torch.no_grad()
    def statistics(self, cut: LayerwisePass, name: str, rows: slice = ALL_ROWS) -> Moments:
        """What a refit of one consumer needs.

        All rows are gathered half by half, and the halves are remembered until all rows are asked for again: asking for
        them then runs nothing.

        Args:
            cut: the pass over the model that is being cut, arrived at the same block.
            name: of the consumer, in the block that was begun.
            rows: of its inputs, counted over all batches: all, or one half of them.

        Returns:
            Of what the consumer should give, and its inputs as they are now. Its bias is not part of ``t``.
        """
        if rows == ALL_ROWS:
            self._halves = self._gathered_halves(cut, name)
            return combined(*self._halves.values())
        return self._halves[rows.start, rows.stop]

    def _gathered_halves(self, cut: LayerwisePass, name: str) -> dict[tuple[int, int], Moments]:
        before = self.writers[: self.writers.index(name)]
        bias = getattr(base_layer(base_model(self._model).get_submodule(name)), "bias", None)
        count = sum(target.flatten(0, -2).shape[0] for target in self._after[name])
        if cut.is_shared:
            count = total(count)
        halves = [slice(0, count // 2), slice(count // 2, count)]
        sums = [_Sums() for _ in halves]
        seen = cut.first_row
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
                for half, found in zip(halves, sums, strict=True):
                    part = part_of(half, seen)
                    found.add(x[part], wanted[part])
                seen += len(x)
        if cut.is_shared:
            for found in sums:
                found.over_processes_()
        return {
            (half.start, half.stop): found.moments() for half, found in zip(halves, sums, strict=True) if found.rows
        }


@dataclass
class _Sums:
    """Products of inputs and of what should be given, added up."""

    moment: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    square: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    rows: int = 0

    def add(self, x: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add rows."""
        self.cross = self.cross.to(x.device) + wanted.T @ x
        self.moment = self.moment.to(x.device) + x.T @ x
        self.square = self.square.to(x.device) + wanted.square().sum(dtype=torch.float64)
        self.rows += len(x)

    def over_processes_(self) -> None:
        """Add up what all processes of a run have seen."""
        self.moment, self.cross, self.square = summed(self.moment), summed(self.cross), summed(self.square)
        self.rows = total(self.rows)

    def moments(self) -> Moments:
        """Means over the rows."""
        return Moments(self.moment / self.rows, self.rows, self.cross / self.rows, float(self.square) / self.rows)
