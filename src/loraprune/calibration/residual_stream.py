"""The residual stream of the uncut model as the target of a refit, which then compensates for earlier cuts as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration, LayerwisePass, token_sequences
from loraprune.calibration.features import ALL_ROWS, FeatureStatistics, gram, part_of
from loraprune.calibration.least_squares import Moments
from loraprune.layers.axes import axis_length, is_matrix
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.processes.ranks import on_any, summed, total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from loraprune.structure.dimensions import Structure

_TOLERANCE = 1e-2
"""Largest deviation of a block's output from the computed stream, as a share of what the block adds to the stream."""


class NoStreamError(ValueError):
    """The blocks of a model do more than add the outputs of their consumers to a residual stream."""


def stream_writers(model: nn.Module, structure: Structure, layer: int) -> list[str]:
    """Return the layers of a block that write to the residual stream: the consumers of all dimensions, in order."""
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
    """Return the linear layers of a block that read inputs as wide as the residual stream and do not write to it."""
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
    """Inputs of the layers of one block, in the order of their calls.

    Attributes:
        called: readers and writers, in the order of the first run.
        leaders: for each reader, the first one that was called with the same tensor.
        inputs: inputs of each leader, batch by batch.
    """

    called: list[str] = field(default_factory=list)
    leaders: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def groups_before(self, writer: str, writers: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the readers between a writer and the writer before it, grouped by the tensor that they read."""
        groups: dict[str, list[str]] = {}
        for name in self.called[: self.called.index(writer)]:
            if name in writers:
                groups = {}
            else:
                groups.setdefault(self.leaders[name], []).append(name)
        return [tuple(group) for group in groups.values()]

    @contextmanager
    def watching(self, model: nn.Module, readers: Sequence[str], writers: Sequence[str]) -> Iterator[None]:
        """Record the inputs of the readers during one run of the block."""
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
    """Yield the last output of each given layer."""
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
    """Whether blocks only add the outputs of their consumers to a residual stream, checked on one sequence."""
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

    Each block runs on them before it is cut, so no second model is needed. Memory: the hidden states of the
    calibration data once for the uncut stream, and once more in 32 bits for each consumer of the current block.

    Args:
        model: uncut model.
        structure: structure of the model, with a decoder.
        sequences: token ids, 1-D tensors.
        device: device to compute on, if it is not the model's.
        readers: whether to record the inputs of the layers that read the stream as well.

    Attributes:
        writers: layers of the current block that write to the stream, in the order of the forward pass.
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
        self.writers: list[str] = []

    @torch.no_grad()
    def begin_block(self, layer: int) -> None:
        """Run a block on the uncut stream, before it is cut.

        Raises:
            NoStreamError: the block's output is not the stream plus the outputs of its consumers.
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
                    "Blocks of this model do more than add their layers' outputs to a residual stream (first seen "
                    f"in {self._structure.blocks[layer]})."
                )
                if not self._dense.is_shared:
                    break
        if on_any(fault is not None):
            raise fault or NoStreamError("Another process found a block that does more than add to a residual stream.")

    @torch.no_grad()
    def look_past_block(self) -> None:
        """Run the next block, which will be removed; the last writer before it takes over its contribution."""
        for number, (_, output, _) in enumerate(self._dense.advance_watching(nullcontext)):
            if self.writers:
                self._after[self.writers[-1]][number] = output.float()

    @contextmanager
    def _watched(self, readers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the outputs of the writers during one run of the block, and record the inputs of the readers."""
        with ExitStack() as stack:
            if readers:
                stack.enter_context(self._reading.watching(self._model, readers, self.writers))
            yield stack.enter_context(_outputs(self._model, self.writers))
        for inputs in self._reading.inputs.values():
            inputs[-1] = inputs[-1].to(self._home)

    def readers_before(self, writer: str) -> list[tuple[str, ...]]:
        """Return the readers between a writer of the current block and the one before it, grouped by input tensor."""
        return self._reading.groups_before(writer, self.writers) if self._reading.called else []

    @torch.no_grad()
    def reader_statistics(
        self, cut: LayerwisePass, names: Sequence[str], rows: slice = ALL_ROWS
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return the statistics for a refit of readers.

        Args:
            cut: pass over the model that is being cut, positioned at the same block.
            names: names of readers of one tensor, see :meth:`readers_before`.
            rows: rows to use, counted over all batches.

        Returns:
            ``E[x xᵀ]`` and ``E[x* xᵀ]``, float32, shape ``(hidden, hidden)``, where ``x`` is the current input of the
            readers and ``x*`` their input in the uncut model; and the number of rows.
        """
        leader = self._reading.leaders[names[0]]
        moment, between = torch.zeros(()), torch.zeros(())
        seen, count = cut.first_row, 0
        for (args, _), dense in zip(cut.entering(leader), self._reading.inputs[leader], strict=True):
            x = args[0].flatten(0, -2)
            part = part_of(rows, seen)
            seen += len(x)
            wanted, x = dense.to(x.device).flatten(0, -2)[part].float(), x[part].float()
            moment = moment.to(x.device) + gram(x)
            between = between.to(x.device) + wanted.T @ x
            count += len(x)
        if cut.is_shared:
            moment, between, count = summed(moment), summed(between), total(count)
        return moment / count, between / count, count

    @torch.no_grad()
    def gather(self, cut: LayerwisePass, name: str) -> TargetMoments:
        """Collect the moments for a refit of one consumer, half by half; scores are taken from the same run.

        Args:
            cut: pass over the model that is being cut, positioned at the same block; it knows the statistics of the
                consumer's inputs afterwards, see :meth:`CalibrationPass.unchanged`.
            name: name of the consumer, in the current block.

        Returns:
            Moments of the consumer's current inputs and its target output ``t``, which does not include its bias.
        """
        halves = self._gathered_halves(cut, name)
        both = reduce(_Sums.plus, halves.values())
        cut.know(name, both.inputs)
        return TargetMoments(both.moments(), {rows: half.moments() for rows, half in halves.items()})

    def _gathered_halves(self, cut: LayerwisePass, name: str) -> dict[tuple[int, int], _Sums]:
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
                # In 32 bits, because a stream may be hundreds of times as large as the additions to it.
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
        return {(half.start, half.stop): found for half, found in zip(halves, sums, strict=True) if found.inputs.rows}


@dataclass(frozen=True)
class TargetMoments:
    """Moments for a refit to the uncut stream.

    Attributes:
        both: moments over all rows.
        halves: moments over each half, by the first row and the row after the last.
    """

    both: Moments
    halves: Mapping[tuple[int, int], Moments]

    def part(self, rows: slice) -> Moments:
        """Return the moments over all rows, or over one half of them."""
        return self.both if rows == ALL_ROWS else self.halves[rows.start, rows.stop]


@dataclass
class _Sums:
    """Sums of the products of inputs and target outputs."""

    inputs: FeatureStatistics = field(default_factory=lambda: FeatureStatistics(moment=True))
    cross: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    square: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add rows."""
        self.inputs.add(x)
        self.cross = self.cross.to(x.device) + wanted.T @ x
        self.square = self.square.to(x.device) + torch.linalg.vector_norm(wanted, dim=1).double().square().sum()

    def plus(self, other: _Sums) -> _Sums:
        """Return the sums over the rows of both."""
        return _Sums(self.inputs.plus(other.inputs), self.cross + other.cross, self.square + other.square)

    def over_processes_(self) -> None:
        """Sum over all processes of a run."""
        self.inputs.over_processes_()
        self.cross, self.square = summed(self.cross), summed(self.square)

    def moments(self) -> Moments:
        """Return the means over the rows."""
        rows = self.inputs.rows
        return Moments(self.inputs.moment, rows, self.cross / rows, float(self.square) / rows)
