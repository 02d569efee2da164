"""How many calibration sequences the refit needs: in the joint recipe, and without any tuning.

    python experiments/calibration.py

50 %; the joint default, and one shot with ``fisher`` and refit on uniform widths, which looks at as many sequences
for its scores as for its refit.
"""

from __future__ import annotations

from laboratory import Run
from sweep import sweep

NUMBERS = (1, 4, 16, 64, 256)
SHOT = {"criterion": "fisher", "repair": "refit", "allocation": "uniform"}
RUNS = tuple(
    Run(name=name, x=number, how=how, values={**values, "calibration_sequences": number})
    for name, how, values in (("joint", "joint", {}), ("one shot", "one shot", SHOT))
    for number in NUMBERS
)


def main() -> None:
    sweep("calibration", __doc__, RUNS, xlabel="calibration sequences", head=lambda x: f"{x:g}", log_x=True, log_y=True)


if __name__ == "__main__":
    main()
