"""What became of the matrices of a sparse model, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraprune.record import numbers
from loraprune.record.report_data import Details, LayerWidth
from loraprune.sparsity.whole_model import MatrixRecord

SEEN_DIFFERENCE = 0.005


def matrices_of(sparsity: Mapping[str, Any]) -> tuple[MatrixRecord, ...]:
    """Matrices as the record of a run without training has them; none of other runs."""
    return tuple(MatrixRecord(**matrix) for matrix in sparsity.get("matrices", ()))


def zeroed_layers(matrices: Sequence[MatrixRecord]) -> tuple[LayerWidth, ...]:
    """Weights of each layer that are not zero; nothing where every layer has the same share, which needs no picture."""
    if not matrices:
        return ()
    totals: dict[int, list[int]] = {}
    for matrix in matrices:
        total = totals.setdefault(matrix.layer, [0, 0])
        total[0] += matrix.weights
        total[1] += matrix.weights - matrix.zeros
    shares = [kept / weights for weights, kept in totals.values()]
    if max(shares) - min(shares) < SEEN_DIFFERENCE:
        return ()
    return tuple(
        LayerWidth(layer=layer, kind="weights_that_are_not_zero", total=weights, kept=kept)
        for layer, (weights, kept) in totals.items()
    )


def matrix_table(matrices: Sequence[MatrixRecord]) -> tuple[Details, ...]:
    """Zeros, error and time of every matrix; of stacked experts, of all that stand in one place."""
    if not matrices:
        return ()
    places: dict[tuple[int, str], list[MatrixRecord]] = {}
    for matrix in matrices:
        places.setdefault((matrix.layer, matrix.kind), []).append(matrix)
    rows = []
    for (layer, kind), found in places.items():
        weights, zeros = sum(matrix.weights for matrix in found), sum(matrix.zeros for matrix in found)
        errors = [matrix.error for matrix in found if matrix.error is not None]
        rows.append(
            (
                str(layer),
                kind,
                f"{weights:,}",
                f"{zeros / weights:.2%}",
                f"{sum(errors) / len(errors):.2%}" if errors else numbers.MISSING,
                f"{sum(matrix.seconds for matrix in found):.2f}",
            )
        )
    heads = ("layer", "matrix", "weights", "zeros", "output error", "seconds")
    return (Details(title="Matrices", heads=heads, rows=tuple(rows)),)
