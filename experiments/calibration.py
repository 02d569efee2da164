"""How many calibration sequences the refit needs: in the joint recipe, and without any tuning.

    python experiments/calibration.py

50 %; the joint default, and one shot with ``fisher`` and refit on uniform widths, which looks at as many sequences
for its scores as for its refit.
"""

from __future__ import annotations

import pictures
from laboratory import Run, all_runs, by_place, markdown, parser

NUMBERS = (1, 4, 16, 64, 256)
SHOT = {"method": "fisher", "repair": "refit", "allocation": "uniform"}
RUNS = tuple(
    Run(name=name, x=number, how=how, values={**values, "calibration_sequences": number})
    for name, how, values in (("joint", "joint", {}), ("one shot", "one shot", SHOT))
    for number in NUMBERS
)


def main() -> None:
    options = parser(__doc__).parse_args()
    laboratory, rows = all_runs(options, "calibration", RUNS)
    names = ("joint", "one shot")
    table = [[model, name, *by_place(rows, model, name, NUMBERS)] for model in options.models for name in names]
    print(markdown(["", "", *map(str, NUMBERS)], table))
    series = {name: [name] for name in names}
    path = laboratory.output.with_suffix(".svg")
    pictures.lines(rows, path, models=options.models, series=series, xlabel="calibration sequences", log_x=True)


if __name__ == "__main__":
    main()
