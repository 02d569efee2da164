"""What the joint recipe settles and refuses where single weights become zero (PST)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraprune.pruning.config import PruningConfig
    from loraprune.tasks.options import RunOptions


def check_pst(pruning: PruningConfig, options: RunOptions) -> tuple[PruningConfig, RunOptions]:
    """The options of a run of PST: without refit, and without measures of what becomes smaller.

    Raises:
        ValueError: something asked for needs a smaller model.
    """
    if options.target_params is not None:
        raise ValueError(
            "target_params was given, and the criterion 'pst' makes weights zero and none fewer. Give a ratio."
        )
    if options.unrecovered:
        raise ValueError(
            "measure_unrecovered was given, and the criterion 'pst' has no cut to measure without tuning. Leave it out."
        )
    if pruning.ratio == 0.0:
        raise ValueError("ratio is 0, which makes no weight zero: it must lie between 0 and 1.")
    return replace(pruning, refit=False), replace(options, latency=False)
