"""Figure 6 of the LoRAPrune paper in miniature: the decay λ of the moving average, and the number of iterations.

    python experiments/average.py

50 %, the paper's recipe; for the number of iterations also the default.
"""

from __future__ import annotations

import pictures
from laboratory import PAPER, Run, all_runs, by_place, markdown, parser

DECAYS = (0.0, 0.5, 0.9, 0.99)
STEPS = (25, 50, 100)
BY_DECAY = tuple(Run(name="λ", x=decay, values={**PAPER, "average_decay": decay}) for decay in DECAYS)
BY_STEPS = tuple(
    Run(name=name, x=steps, values=values, steps=steps)
    for name, values in (("LoRAPrune (paper)", PAPER), ("loraprune (default)", {}))
    for steps in STEPS
)


def main() -> None:
    options = parser(__doc__).parse_args()
    laboratory, rows = all_runs(options, "average", [*BY_DECAY, *BY_STEPS])

    names = ("LoRAPrune (paper)", "loraprune (default)")
    table = [[model, *by_place(rows, model, "λ", DECAYS)] for model in options.models]
    print(markdown(["λ", *(f"{x:g}" for x in DECAYS)], table))
    table = [[model, name, *by_place(rows, model, name, STEPS)] for model in options.models for name in names]
    print()
    print(markdown(["", "steps", *map(str, STEPS)], table))
    folder = laboratory.output.parent
    pictures.lines(rows, folder / "average.svg", models=options.models, series={"LoRAPrune (paper)": ["λ"]}, xlabel="λ")
    series = {name: [name] for name in names}
    path = folder / "iterations.svg"
    pictures.lines(rows, path, models=options.models, series=series, xlabel="training steps", log_x=True)


if __name__ == "__main__":
    main()
