"""Table 8 of the LoRAPrune paper in miniature: how many steps lie between two cuts.

    python experiments/frequency.py

50 %, from 10 % to 90 % of the run as in the paper; its recipe, and the same schedule with ``fisher`` and refit.
"""

from __future__ import annotations

from laboratory import PAPER, Run
from sweep import sweep

EVERY = (1, 5, 10, 20)
OURS = {"allocation": "uniform", "prune_start": 0.1, "prune_end": 0.9}
RUNS = tuple(
    Run(name=name, x=every, values={**values, "cut_every": every})
    for name, values in (("LoRAPrune (paper)", PAPER), ("fisher, refit", OURS))
    for every in EVERY
)


def main() -> None:
    sweep("frequency", __doc__, RUNS, xlabel="steps between cuts", head=lambda x: f"every {x:g}", log_x=True)


if __name__ == "__main__":
    main()
