"""Makes a whole model sparse, block by block; each block sees the outputs of the sparse blocks before it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.calibration.features import FeatureStatistics
from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.calibration.progress import Progress
from loraprune.layers.unwrap import base_model, eval_mode
from loraprune.record.run_record import MatrixRecord
from loraprune.record.saved_steps import SavedSteps
from loraprune.sparsity.configs import Evidence, MagnitudeMask, WithUpdates, ZeroingMethod
from loraprune.sparsity.matrices import Matrix, matrices_of
from loraprune.sparsity.methods import SparseMatrix, sparsify
from loraprune.sparsity.pattern import SparsityPattern

if TYPE_CHECKING:
    from loraprune.calibration.block_by_block import CalibrationPass
    from loraprune.calibration.routed_tokens import RoutedTokens
    from loraprune.structure.dimensions import Structure

RAISED_DAMPING = 0.1
"""Damping for updates whose second moment has fewer tokens than features, so most of its directions are unknown."""


def check_widths(model: nn.Module, structure: Structure, method: ZeroingMethod, pattern: SparsityPattern) -> None:
    """Check that every matrix can have the pattern; the model may have no weights.

    Raises:
        ValueError: the length of a row is not a multiple of M, or no weight of a matrix would be removed.
    """
    for layer, block in enumerate(structure.blocks):
        if layer in structure.protected:
            continue
        for matrix in matrices_of(base_model(model), block):
            rows, width = matrix.weight_oi().shape
            pattern.check_width(width, matrix.name)
            compared = method.compared_weights(rows, width)
            if pattern.count(compared) == 0:
                raise ValueError(
                    f"A sparsity of {pattern.ratio:g} removes nothing from {matrix.name}: {compared} weights are "
                    "compared with each other. Choose a higher sparsity."
                )


def sparsify_(
    model: nn.Module,
    structure: Structure,
    calibration: CalibrationPass | None,
    method: ZeroingMethod,
    pattern: SparsityPattern,
    progress: Progress = lambda done, total: None,
    saved: SavedSteps | None = None,
) -> list[MatrixRecord]:
    """Make the linear layers of all blocks sparse, in place.

    Args:
        model: model without an adapter.
        structure: structure of the model; blocks that it protects are skipped.
        calibration: a pass that has not begun; None for methods that read only weights.
        method: method for each matrix.
        pattern: number and positions of the weights that become zero.
        progress: receives the number of finished blocks and the number of all blocks.
        saved: blocks that an interrupted run finished, and the place for further ones.

    Returns:
        One record per matrix, in their order.

    Raises:
        ArithmeticError: the calibration data produce NaN or Inf.
    """
    records: list[MatrixRecord] = []
    troubles, saved = Troubles(), saved or SavedSteps()
    progress(0, len(structure.blocks))
    with eval_mode(model), torch.no_grad():
        for layer, block in enumerate(structure.blocks):
            module = base_model(model).get_submodule(block)
            finished = None if layer in structure.protected else saved.found(f"zeros-{layer}")
            if finished is not None:
                module.load_state_dict(dict(finished.tensors))
                records += [MatrixRecord(**record) for record in finished.facts["records"]]
                troubles.take_over(finished.facts["troubles"])
            elif layer not in structure.protected:
                matrices = list(matrices_of(base_model(model), block))
                with_inputs = _with_inputs(matrices, calibration, method.evidence)
                made = {
                    matrix.name: _sparsify_matrix_(matrix, layer, inputs, method, pattern, troubles)
                    for matrix, inputs in with_inputs
                }
                of_block = [made[matrix.name] for matrix in matrices]
                records += of_block
                if saved.keeps:
                    facts = {"records": [asdict(record) for record in of_block], "troubles": troubles.told()}
                    saved.keep(f"zeros-{layer}", module.state_dict(), facts)
            if calibration is not None:
                calibration.advance()
            progress(layer + 1, len(structure.blocks))
    troubles.warn()
    return records


def _with_inputs(
    matrices: Sequence[Matrix], calibration: CalibrationPass | None, evidence: Evidence
) -> Iterator[tuple[Matrix, FeatureStatistics | None]]:
    """Yield each matrix with the statistics of its inputs before any matrix of the block is changed."""
    if calibration is None or evidence is Evidence.NOTHING:
        yield from ((matrix, None) for matrix in matrices)
        return
    moment = evidence is Evidence.MOMENT
    names = [matrix.module_name for matrix in matrices if matrix.expert is None]
    routed: dict[str, RoutedTokens] = {}
    for matrix in matrices:
        if matrix.expert is not None and matrix.module_name not in routed:
            routed[matrix.module_name] = calibration.routed_tokens(matrix.module_name)
    features = calibration.features_of(names, moment=moment)
    # An expert's down projection reads the output of its up projection, so it has to be processed first.
    for matrix in sorted(matrices, key=lambda matrix: matrix.parameter != "down_proj"):
        if matrix.expert is None:
            yield matrix, features.get(matrix.module_name)
        else:
            tokens = routed[matrix.module_name]
            yield matrix, tokens.features(matrix.module, matrix.parameter, matrix.expert, moment=moment)


def _sparsify_matrix_(
    matrix: Matrix,
    layer: int,
    inputs: FeatureStatistics | None,
    method: ZeroingMethod,
    pattern: SparsityPattern,
    troubles: Troubles,
) -> MatrixRecord:
    """Make one matrix sparse, by magnitude if nothing is known about its inputs."""
    started = time.perf_counter()
    weight = matrix.weight_oi().float()
    before = int((weight == 0).sum())
    result = _result(matrix.name, weight, inputs, method, pattern, troubles)
    matrix.write_(result.weight_OI)
    zeros = int((matrix.weight_oi() == 0).sum())
    return MatrixRecord(
        name=matrix.name,
        layer=layer,
        kind=matrix.kind,
        weights=weight.numel(),
        zeros=zeros,
        zeros_before=before,
        seconds=time.perf_counter() - started,
        error=result.error,
        damping=result.damping,
    )


def _result(
    name: str,
    weight: torch.Tensor,
    inputs: FeatureStatistics | None,
    method: ZeroingMethod,
    pattern: SparsityPattern,
    troubles: Troubles,
) -> SparseMatrix:
    if method.evidence is Evidence.NOTHING:
        return sparsify(weight, None, method, pattern)
    if inputs is None:
        troubles.note("idle", name, "no calibration token reaches it, so its weights are removed by magnitude.")
        return sparsify(weight, None, MagnitudeMask(), pattern)
    if not inputs.is_finite:
        raise ArithmeticError(
            f"The calibration data produce NaN or Inf at the inputs of {name}. Nothing was written. Check that the "
            "model works in this dtype."
        )
    if isinstance(method, WithUpdates) and inputs.rows < weight.shape[1]:
        asked, method = method.damping, replace(method, damping=max(method.damping, RAISED_DAMPING))
        troubles.note(
            "few tokens",
            name,
            f"{inputs.rows} calibration tokens are fewer than {weight.shape[1]} input features, so the updates are "
            f"damped by {method.damping:g} instead of {asked:g}. Use more calibration sequences.",
        )
    try:
        result = sparsify(weight, inputs, method, pattern)
    except NotPositiveDefiniteError:
        troubles.note(
            "not inverted",
            name,
            "the second moment of the inputs cannot be inverted, even with a thousandfold damping, so the weights are "
            "removed by magnitude, without updates.",
        )
        return sparsify(weight, None, MagnitudeMask(), pattern)
    if isinstance(method, WithUpdates) and result.damping is not None and result.damping > method.damping:
        troubles.note(
            "damped more",
            name,
            f"the second moment of the inputs is not positive definite with a damping of {method.damping:g}, so it was "
            f"raised to {result.damping:g}.",
        )
    return result


# Warnings about matrices, one for all matrices with the same problem: a large model has hundreds of them.


class Troubles:
    """Collects warnings, by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}

    def note(self, kind: str, name: str, what: str) -> None:
        """Record a problem of a matrix.

        Args:
            kind: kind of problem; matrices with the same kind share a warning.
            name: name of the matrix.
            what: sentence about it; only the sentence for the first matrix of a kind is shown.
        """
        self._names.setdefault(kind, []).append(name)
        self._first.setdefault(kind, what)

    def told(self) -> dict[str, Any]:
        """Return all warnings as plain values."""
        return {"names": self._names, "first": self._first}

    def take_over(self, told: Mapping[str, Any]) -> None:
        """Continue from what :meth:`told` returned."""
        self._names = {kind: list(names) for kind, names in told["names"].items()}
        self._first = dict(told["first"])

    def warn(self) -> None:
        """Issue one warning per kind."""
        for kind, names in self._names.items():
            others = len(names) - 1
            more = f" and {others} more matri{'x' if others == 1 else 'ces'}" if others else ""
            warnings.warn(f"{names[0]}{more}: {self._first[kind]}", stacklevel=3)
