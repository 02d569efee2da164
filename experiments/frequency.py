"""Table 8 of the LoRAPrune paper in miniature: how many steps lie between two cuts.

    python experiments/frequency.py

50 %, from 10 % to 90 % of the run as in the paper; its recipe, and the same schedule with ``fisher`` and refit.
"""

from __future__ import annotations

import pictures
from laboratory import PAPER, Run, all_runs, by_place, markdown, parser

EVERY = (1, 5, 10, 20)
OURS = {"allocation": "uniform", "prune_start": 0.1, "prune_end": 0.9}
RUNS = tuple(
    Run(name=name, x=every, values={**values, "cut_every": every})
    for name, values in (("LoRAPrune", PAPER), ("fisher, refit", OURS))
    for every in EVERY
)


def main() -> None:
    options = parser(__doc__).parse_args()
    laboratory, rows = all_runs(options, "frequency", RUNS)
    names = list(dict.fromkeys(run.name for run in RUNS))
    table = [[model, name, *by_place(rows, model, name, EVERY)] for model in options.models for name in names]
    print(markdown(["", "", *(f"every {every}" for every in EVERY)], table))
    series = {name: [name] for name in names}
    path = laboratory.output.with_suffix(".svg")
    pictures.lines(rows, path, models=options.models, series=series, xlabel="steps between cuts", log_x=True)


if __name__ == "__main__":
    main()
