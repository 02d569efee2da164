"""When pruning should end: the last cut between 10 % and 90 % of the run, the rest is recovery.

    python experiments/end_of_pruning.py

The default at 50 %, five cuts from 5 % of the run on; with refit and without.
"""

from __future__ import annotations

import pictures
from laboratory import Run, all_runs, by_place, markdown, parser

ENDS = (0.1, 0.3, 0.5, 0.7, 0.9)
RUNS = tuple(
    Run(name=name, x=end, values={"prune_start": 0.05, "prune_end": end, "refit": refit})
    for name, refit in (("refit", True), ("no refit", False))
    for end in ENDS
)


def main() -> None:
    options = parser(__doc__).parse_args()
    laboratory, rows = all_runs(options, "end_of_pruning", RUNS)
    names = ("refit", "no refit")
    table = [[model, name, *by_place(rows, model, name, ENDS)] for model in options.models for name in names]
    print(markdown(["", "", *(f"{end:.0%}" for end in ENDS)], table))
    series = {name: [name] for name in names}
    path = laboratory.output.with_suffix(".svg")
    pictures.lines(rows, path, models=options.models, series=series, xlabel="last cut, share of the run")


if __name__ == "__main__":
    main()
