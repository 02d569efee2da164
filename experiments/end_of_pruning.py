"""When pruning should end: the last cut between 10 % and 90 % of the run, the rest is recovery.

    python experiments/end_of_pruning.py

The default at 50 %, five cuts from 5 % of the run on; with refit and without.
"""

from __future__ import annotations

from laboratory import Run
from sweep import sweep

ENDS = (0.1, 0.3, 0.5, 0.7, 0.9)
RUNS = tuple(
    Run(name=name, x=end, values={"prune_start": 0.05, "prune_end": end, "repair": "refit" if refit else "none"})
    for name, refit in (("refit", True), ("no refit", False))
    for end in ENDS
)


def main() -> None:
    sweep("end_of_pruning", __doc__, RUNS, xlabel="last cut, share of the run", head=lambda x: f"{x:.0%}")


if __name__ == "__main__":
    main()
