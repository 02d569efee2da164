"""A whole model made sparse, block by block: each block on what the sparse blocks before it make of the data."""

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
"""Damping of updates whose second moment has fewer tokens than features: most of its directions are not known."""


def check_widths(model: nn.Module, structure: Structure, method: ZeroingMethod, pattern: SparsityPattern) -> None:
    """Make sure that every matrix can have the pattern; the model may be one without weights.

    Raises:
        ValueError: a row is not a multiple of M long, or nothing of a matrix would go.
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
                    "compared with each other. Ask for more."
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
        model: without an adapter.
        structure: its description; blocks that it protects are left alone.
        calibration: a pass that has not begun; None for methods that look at nothing but weights.
        method: what is done to each matrix.
        pattern: how many weights become zero, and where.
        progress: hears how many blocks are done, and how many there are.
        saved: blocks that an interrupted run finished, and where to keep further ones.

    Returns:
        What became of each matrix, in their order.

    Raises:
        ArithmeticError: calibration data make NaN or Inf.
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
    """Each matrix with the statistics of what enters it before any matrix of the block is changed."""
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
    # An expert's down projection reads what its up projection makes: it has to be looked at first.
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
    """Make one matrix sparse; where nothing can be said of its inputs, by magnitude."""
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
        troubles.note("idle", name, "no calibration token arrives there, so that weights go by magnitude.")
        return sparsify(weight, None, MagnitudeMask(), pattern)
    if not inputs.is_finite:
        raise ArithmeticError(
            f"The calibration data make NaN or Inf where they enter {name}. Nothing was written. Is the model sound in "
            "this dtype?"
        )
    if isinstance(method, WithUpdates) and inputs.rows < weight.shape[1]:
        asked, method = method.damping, replace(method, damping=max(method.damping, RAISED_DAMPING))
        troubles.note(
            "few tokens",
            name,
            f"{inputs.rows} calibration tokens are fewer than {weight.shape[1]} input features, so that the updates "
            f"are damped by {method.damping:g} ({asked:g} was asked for). More calibration sequences help.",
        )
    try:
        result = sparsify(weight, inputs, method, pattern)
    except NotPositiveDefiniteError:
        troubles.note(
            "not inverted",
            name,
            "the second moment of the inputs cannot be inverted, even with a thousandfold damping, so that weights go "
            "by magnitude, without updates.",
        )
        return sparsify(weight, None, MagnitudeMask(), pattern)
    if isinstance(method, WithUpdates) and result.damping is not None and result.damping > method.damping:
        troubles.note(
            "damped more",
            name,
            f"the second moment of the inputs is not positive definite with a damping of {method.damping:g}; it was "
            f"raised to {result.damping:g}.",
        )
    return result


# What is unusual about matrices, told once for all that it holds for: a large model has hundreds of them.


class Troubles:
    """Collects what is to be warned of, by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}

    def note(self, kind: str, name: str, what: str) -> None:
        """Something is unusual about a matrix.

        Args:
            kind: matrices with the same kind of trouble are told together.
            name: of the matrix.
            what: a sentence on it; of each kind, that of the first matrix is told.
        """
        self._names.setdefault(kind, []).append(name)
        self._first.setdefault(kind, what)

    def told(self) -> dict[str, Any]:
        """All that was noted, as plain values."""
        return {"names": self._names, "first": self._first}

    def take_over(self, told: Mapping[str, Any]) -> None:
        """Go on from what :meth:`told` gave."""
        self._names = {kind: list(names) for kind, names in told["names"].items()}
        self._first = dict(told["first"])

    def warn(self) -> None:
        """Give one warning a kind."""
        for kind, names in self._names.items():
            others = len(names) - 1
            more = f" and {others} more matri{'x' if others == 1 else 'ces'}" if others else ""
            warnings.warn(f"{names[0]}{more}: {self._first[kind]}", stacklevel=3)
