"""Experiments that vary one value: a table with a column a value, and a picture with a line a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pictures
from laboratory import Run, all_runs, by_place, markdown, parser


def sweep(
    experiment: str,
    description: str | None,
    runs: Sequence[Run],
    *,
    xlabel: str,
    head: Callable[[float], str],
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Run an experiment from the command line.

    Args:
        experiment: its name.
        description: of the command.
        runs: with the value that is varied as ``x``.
        xlabel: what is varied.
        head: writes a value above its column.
        log_x: whether it is drawn on a logarithmic axis; ``log_y``: whether perplexity is.
    """
    options = parser(description).parse_args()
    laboratory, rows = all_runs(options, experiment, runs)
    names = list(dict.fromkeys(run.name for run in runs))
    places = sorted({run.x for run in runs if run.x is not None})
    table = [[model, name, *by_place(rows, model, name, places)] for model in options.models for name in names]
    print(markdown(["", "", *map(head, places)], table))
    series = {name: [name] for name in names}
    path = laboratory.output.with_suffix(".svg")
    pictures.lines(rows, path, models=options.models, series=series, xlabel=xlabel, log_x=log_x, log_y=log_y)
