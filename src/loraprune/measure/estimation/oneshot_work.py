"""Arithmetic of ``loraprune oneshot`` with its defaults (osscar, the repair stream), and the part that processes share.

Each block runs on the stream of the uncut model, then up to each consumer for scores and repair together, and then to
go on, without the parts that were finished before the last consumer was reached. (Attention that returns its weights,
which ``sdpa`` does not, may run again.) The processes divide the calibration sequences for these runs and the second
moments, and then sum the moments. Each process computes the order of elimination and the least squares itself. The
tried ridges are divided, too. The tuning of the norms is not counted: its steps do not grow with the calibration data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprune.calibration import least_squares
from loraprune.calibration.features import block_width
from loraprune.calibration.finished_parts import finished_part
from loraprune.importance.osscar import MOST_ROUNDS, WIDEST_IN_64_BITS, lets_go, subtracts
from loraprune.layers.axes import is_matrix, matrix_shape
from loraprune.layers.unwrap import base_layer
from loraprune.surgery.repairs import Stream

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

ONESHOT_LENGTH = 2048
"""Default maximum number of tokens per row of calibration data."""

_SINGLE, _DOUBLE = 4, 8
_HALVES = 2


@dataclass(frozen=True, kw_only=True)
class PrunedConsumer:
    """A consumer of a pruned dimension.

    Attributes:
        outputs: outputs of the layer.
        inputs: inputs before the cut.
        kept: inputs after it.
        groups: groups before the cut.
        before: parameters of the block's linear layers that run before it.
        attended: output features of the attention before it.
    """

    outputs: int
    inputs: int
    kept: int
    groups: int
    before: int
    attended: int


@dataclass(frozen=True, kw_only=True)
class OneshotWork:
    """Floating point operations and bytes of a one-shot run with one cut of all blocks.

    Attributes:
        passes: operations of forward passes, in the model's dtype; shared.
        moments: operations of second moments, in 32 bits; shared.
        solves: operations of elimination and least squares, in 32 bits; not shared.
        tried: operations of the :data:`FITS` that are tried, in 32 bits; shared by up to that many processes.
        summed: bytes of the moments that are summed over the processes.
        sums: number of these sums.
    """

    passes: float
    moments: float
    solves: float
    tried: float = 0.0
    summed: float
    sums: int


def gram_flops(features: int) -> float:
    """Operations of :func:`loraprune.calibration.features.gram` for each row."""
    size = block_width(features)
    return 2.0 * sum(min(size, features - start) * (features - start) for start in range(0, features, size))


def elimination_flops(layer: PrunedConsumer) -> float:
    """Operations of :func:`loraprune.importance.osscar.osscar_group_scores`."""
    o, groups, size = layer.outputs, layer.groups, layer.inputs // layer.groups
    at_once = -(-layer.groups // MOST_ROUNDS)
    d, put_by = at_once * size, 0
    found = float(layer.inputs**3)
    for left in range(layer.groups, 0, -at_once):
        i = groups * size
        found += groups * (size**3 / 3 + size**2 * o) if size > 1 else 0.0
        # Columns that are examined, if more than those removed, and the removed ones.
        for k in (2 * d, d) if at_once > 1 else (d,):
            found += k**3 / 3 + k**2 * o + 2 * k * put_by * (k + o)
        found += d**2 * i + 2 * d * put_by * i
        goes_on = lets_go(layer.groups, groups, left - at_once)
        subtracted = subtracts(put_by, d, size, in_64_bits=layer.inputs <= WIDEST_IN_64_BITS)
        if not subtracted:
            found += 2 * d * (o * i + o * put_by + put_by * i + o * d + d * i)
        put_by += d
        if subtracted or goes_on:
            found, put_by = found + 2 * put_by * i * (i + o), 0
        if goes_on:
            groups = left - at_once
    return found


_RIDGES = 2 + sum(ridge > Stream().damping for ridge in least_squares.STRONGER_DAMPING)
FITS = _HALVES * _RIDGES
"""Number of least-squares fits: each half of the rows with each ridge, and without."""


def least_squares_flops(layer: PrunedConsumer) -> tuple[float, float]:
    """Operations of :func:`loraprune.calibration.least_squares.held_back_columns` with a target, and of its error.

    Returns:
        Operations that each process does, and those of the tried ridges.
    """
    o, i, k = layer.outputs, layer.inputs, layer.kept
    tried = min(o, least_squares.OUTPUTS_TRIED)

    def equations(outputs: int) -> float:
        return 2 * outputs * k**2 + 2 * k * (i - k) * outputs

    def solving(outputs: int) -> float:
        return k**3 / 3 + 2 * k**2 * outputs

    def loss(outputs: int) -> float:
        return 2 * k**2 * outputs

    mixing = 0 if tried == o else (_HALVES + 1) * 2 * tried * o * i
    halves = _HALVES * (equations(tried) + solving(tried)) + mixing
    # For each half, every ridge and the plain cut are judged on the other half.
    search = _HALVES * ((_RIDGES - 1) * (solving(tried) + loss(tried)) + loss(tried))
    return equations(o) + halves + 2 * solving(o) + 2 * loss(o), 2 * search


def oneshot_work(
    model: Any, structure: Structure, counts: Mapping[str, int], *, sequences: int, tokens: int
) -> OneshotWork | None:
    """Return the work of a run with given widths (``--allocation uniform``).

    None for mixtures of experts, for runs without shared work, and for other methods.

    Args:
        model: without an adapter; shapes are enough.
        structure: its description.
        counts: number of groups kept in each dimension.
        sequences: number of calibration sequences in all processes.
        tokens: tokens per sequence.
    """
    if structure.spec.decoder is None or structure.spans_blocks or any(d.of_experts for d in structure):
        return None
    rows = sequences * tokens
    passes = moments = solves = tried = summed = 0.0
    sums = 0
    for layer, name in enumerate(structure.blocks):
        block = model.get_submodule(name)
        linear = sum(matrix_shape(base_layer(m))[0] * matrix_shape(base_layer(m))[1] for m in _linear(block))
        found = list(_consumers(model, structure, counts, layer, name))
        attended = sum(consumer.attended for consumer in found[:1])
        # The dense block, and what runs of the cut block to continue with.
        left, left_attended = _run_again(model, structure, counts, layer)
        passes += rows * (2 * (linear + left) + 4 * tokens * (attended + left_attended))
        for consumer in found:
            passes += rows * (2 * consumer.before + 4 * tokens * consumer.attended)
            o, i = consumer.outputs, consumer.inputs
            moments += rows * (gram_flops(i) + 2 * o * i)
            fitted, searched = least_squares_flops(consumer)
            solves += elimination_flops(consumer) + fitted
            tried += searched
            # Of each half: products of the inputs, and with the target; sums, squares and rows; squares of the target.
            summed += _HALVES * ((i**2 + o * i) * _SINGLE + (2 * i + 2) * _DOUBLE)
            sums += _HALVES * 4
    return OneshotWork(passes=passes, moments=moments, solves=solves, tried=tried, summed=summed, sums=sums)


def _linear(block: Any) -> list[Any]:
    return [module for module in block.modules() if is_matrix(module)]


def _run_again(model: Any, structure: Structure, counts: Mapping[str, int], layer: int) -> tuple[int, int]:
    """Parameters of linear layers of a cut block, and output features of its attention, that run to go on.

    A part of the block that is finished before the last consumer is reached does not run again.
    """
    block = structure.blocks[layer]
    cut = [dimension for dimension in structure.of_layer(layer) if counts[dimension.name] < dimension.num_groups]
    done = set()
    for number, dimension in enumerate(cut[:-1]):
        changing = [member.module for other in cut[number + 1 :] for member in other.all_members]
        done.add(finished_part(block, dimension.consumer.module, changing))
    left = attended = 0
    for name, module in model.get_submodule(block).named_modules():
        if is_matrix(module) and name.partition(".")[0] not in done:
            rows, columns = matrix_shape(base_layer(module))
            left += rows * columns
    for dimension in structure.of_layer(layer):
        if finished_part(block, dimension.consumer.module, ()) in done:
            continue
        left -= dimension.parameters_per_group * (dimension.num_groups - counts[dimension.name])
        if "heads" in dimension.kind:
            attended = counts[dimension.name] * dimension.consumer.group_size
    return left, attended


def _consumers(
    model: Any, structure: Structure, counts: Mapping[str, int], layer: int, block: str
) -> Iterator[PrunedConsumer]:
    """Consumers of a block's dimensions, with the layers that run before them once the earlier dimensions are cut.

    Attention has as many input as output features.
    """
    attended = cut = 0
    for dimension in structure.of_layer(layer):
        consumer = model.get_submodule(dimension.consumer.module)
        outputs, inputs = matrix_shape(base_layer(consumer))
        if "heads" in dimension.kind:
            attended = inputs
        before = -cut
        for module in _linear(model.get_submodule(block)):
            if module is consumer:
                break
            rows, columns = matrix_shape(base_layer(module))
            before += rows * columns
        gone = dimension.num_groups - counts[dimension.name]
        if not gone:
            continue
        kept = inputs - gone * dimension.consumer.group_size
        yield PrunedConsumer(
            outputs=outputs,
            inputs=inputs,
            kept=kept,
            groups=dimension.num_groups,
            before=before,
            attended=attended,
        )
        cut += gone * dimension.parameters_per_group
        attended = min(attended, kept) if "heads" in dimension.kind else attended
