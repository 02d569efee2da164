"""Table 7 of the LoRAPrune paper in miniature: pruning while tuning against pruning first, with and without refit.

    python experiments/joint.py

Criterion ``fisher``, uniform widths, 50 %, the same tokens of tuning for all. The paper's schedule prunes from 10 % to
90 % of the run, ours from 10 % to 30 %.
"""

from __future__ import annotations

import pictures
from laboratory import Run, all_runs, in_words, markdown, parser, perplexities

SAME = {"allocation": "uniform"}
LATE = {"prune_start": 0.1, "prune_end": 0.9, "cut_every": 10}
RUNS = (
    Run(name="prune, then tune", how="separate", values={"criterion": "fisher", "repair": "none", **SAME}),
    Run(name="prune with refit, then tune", how="separate", values={"criterion": "fisher", "repair": "refit", **SAME}),
    Run(name="joint, 10 to 90 %", values={"repair": "none", **LATE, **SAME}),
    Run(name="joint, 10 to 90 %, refit", values={**LATE, **SAME}),
    Run(name="joint, 10 to 30 %", values={"repair": "none", **SAME}),
    Run(name="joint, 10 to 30 %, refit", values={**SAME}),
)


def main() -> None:
    options = parser(__doc__).parse_args()
    laboratory, rows = all_runs(options, "joint", RUNS)
    names = [run.name for run in RUNS]
    table = [
        [name, *(in_words(perplexities(rows, "in-domain", model=model, name=name)) for model in options.models)]
        for name in names
    ]
    print(markdown(["", *options.models], table))
    pictures.bars(
        rows,
        laboratory.output.with_suffix(".svg"),
        models=options.models,
        names=names,
        groups={"50 % of the prunable parameters removed": {}},
    )


if __name__ == "__main__":
    main()
