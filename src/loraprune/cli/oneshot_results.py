"""What a finished run without training prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from loraprune.cli.results import show_end, show_report
from loraprune.record.numbers import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from loraprune.recipes.oneshot import OneshotResult
    from loraprune.sparsity.whole_model import MatrixRecord


def sparsity_table(matrices: Sequence[MatrixRecord]) -> Table:
    """Zeros, error and time of each layer: of its matrices of a kind the least and the largest share of zeros."""
    with_error = any(matrix.error is not None for matrix in matrices)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in ("layer", "zeros", "least", "most", *(["output error"] if with_error else []), "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    for layer in sorted({matrix.layer for matrix in matrices}):
        own = [matrix for matrix in matrices if matrix.layer == layer]
        zeros = sum(matrix.zeros for matrix in own) / sum(matrix.weights for matrix in own)
        shares = [matrix.sparsity for matrix in own]
        errors = [matrix.error for matrix in own if matrix.error is not None]
        middle = [percent(sum(errors) / len(errors)) if errors else ""] if with_error else []
        seconds = f"{sum(matrix.seconds for matrix in own):.2f}"
        table.add_row(str(layer), percent(zeros), percent(min(shares)), percent(max(shares)), *middle, seconds)
    return table


def show_oneshot_result(console: Console, result: OneshotResult) -> None:
    """Print the tables, the completions, what to know, and where things are."""
    show_report(console, result.report)
    if result.matrices:
        console.print(sparsity_table(result.matrices))
    show_end(console, result.report, result.output, result.model)
