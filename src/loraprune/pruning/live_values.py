"""Values that a run adds to the logs of its Trainer, for TensorBoard, Weights & Biases and similar tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from loraprune.pruning.groups import CutRecord
    from loraprune.pruning.run import PruningRun
    from loraprune.structure.dimensions import Structure

QUANTILES = (0.1, 0.5, 0.9)


def live_values(run: PruningRun, since: int) -> dict[str, float]:
    """Return values of a run by their names in the logs.

    Args:
        run: run after a step.
        since: step of the last log; only later cuts are reported.

    Returns:
        - ``importance/<kind>/q10``, ``q50`` and ``q90``: quantiles over the current groups of the moving averages of
          the scores, until the last cut, if the criterion has averages.
        - ``stability/<kind>``, ``refit_error/<kind>/cut`` and ``/repaired``: means over the layers, of the last cut
          since ``since``.
        - ``seconds/<phase>``: seconds of the run so far, by phase.
    """
    values = importance_quantiles(run.structure, run.averages)
    made = [record for record in run.records if record.step > since]
    if made:
        values |= cut_values(made[-1])
    return values | {f"seconds/{phase.replace(' ', '_')}": taken for phase, taken in run.phases.seconds.items()}


def importance_quantiles(structure: Structure, scores: Scores) -> dict[str, float]:
    """Return quantiles of scores by kind, over all layers."""
    values: dict[str, float] = {}
    for kind in structure.kinds:
        found = [scores[dimension.name].flatten() for dimension in structure.of_kind(kind) if dimension.name in scores]
        if found:
            # Sorted, as torch.quantile refuses the millions of channels of a large mixture.
            ranked = torch.cat(found).sort().values
            places = [round(share * (len(ranked) - 1)) for share in QUANTILES]
            chosen = ranked[torch.as_tensor(places, device=ranked.device)].tolist()
            values |= {
                f"importance/{kind}/q{100 * share:.0f}": value for share, value in zip(QUANTILES, chosen, strict=True)
            }
    return values


def cut_values(record: CutRecord) -> dict[str, float]:
    """Return the stability of the ranking and the mean errors of a cut, by kind."""
    values = {f"stability/{kind}": value for kind, value in record.stability.items()}
    for kind in dict.fromkeys(error.kind for error in record.errors):
        of_kind = [error for error in record.errors if error.kind == kind]
        values[f"refit_error/{kind}/cut"] = _mean([error.cut for error in of_kind])
        repaired = [error.repaired for error in of_kind if error.repaired is not None]
        if repaired:
            values[f"refit_error/{kind}/repaired"] = _mean(repaired)
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
