"""Checks that a result is usable: all cuts were made, and the model is better than chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.errors import BadResultError
from loraprune.recipes.steps.prepared import PreparedRun
from loraprune.record.run_record import ModelMeasures, RunMetrics

_AT_CHANCE = 0.995
"""Share of a uniform guess's loss from which a result counts as no better."""

_CLEARLY_BETTER = 0.95
"""Share of a uniform guess's loss below which the model before the run counts as better."""


def check_result(prepared: PreparedRun, metrics: RunMetrics, pruning: PruningCallback | None, remedy: str) -> None:
    """Refuse an unusable result, unless the user allows it.

    If the model was no better than chance before the run (a new head, random weights), it may be so afterwards.

    Args:
        prepared: the run.
        metrics: measures of the model before and after.
        pruning: callback of a run with training, or None.
        remedy: last part of the message: how to get the result anyway.

    Raises:
        BadResultError: the result is unusable; the message says why.
    """
    if prepared.options.allow_bad_result:
        return
    found = _course(pruning) if pruning is not None else []
    found += _quality(prepared, metrics, pruning)
    if found:
        advice = "Try a lower learning rate, and check the data" if pruning else "Try a lower ratio or a repair"
        raise BadResultError(f"{' '.join(found)} Nothing was written. {advice}; {remedy}.")


def cuts_missing(pruning: PruningCallback) -> str | None:
    """Explain which cuts are missing and why; None if all were made."""
    run = pruning.run
    assert run is not None
    if not run.pending:
        return None
    skipped = len(pruning.skipped_steps)
    why = f"{skipped} of {pruning.steps} steps were skipped for NaN or Inf" if skipped else "training ended before them"
    return (
        f"{len(run.pending)} of {len(run.schedule)} cuts were not made ({why}): the ratio is {100 * run.ratio:.2f} %."
    )


def _course(pruning: PruningCallback) -> list[str]:
    """List the faults of the run."""
    missing = cuts_missing(pruning)
    if missing is not None:
        return [missing]
    if pruning.steps and len(pruning.skipped_steps) >= pruning.steps:
        return [f"All {pruning.steps} steps were skipped for NaN or Inf in the gradients: nothing was tuned."]
    return []


def _quality(prepared: PreparedRun, metrics: RunMetrics, pruning: PruningCallback | None) -> list[str]:
    """List the fault of a result that is no better than a uniform guess, if the model before it was better."""
    choices = _choices(prepared)
    if choices < 2:
        return []
    guess = math.log(choices)
    before, after = _loss(metrics.dense), _loss(metrics.pruned)
    if before is not None and not before < _CLEARLY_BETTER * guess:
        return []
    among = f"a uniform guess among {choices:,}"
    accuracy = metrics.pruned.accuracy
    knows = accuracy is not None and accuracy > 1 / choices
    if before is not None and after is not None and not knows and not after < _AT_CHANCE * guess:
        return [f"The held-out loss of the result is {after:.3f}: no better than {among} ({guess:.3f})."]
    history = pruning.history if pruning is not None else []
    ended = history[-1]["loss"] if history and accuracy is None and before is not None else 0.0
    return [] if ended <= guess else [f"The training loss ended at {ended:.3f}, above that of {among} ({guess:.3f})."]


def _loss(measures: ModelMeasures) -> float | None:
    """Return the held-out loss in nats; None if it was not measured."""
    if measures.perplexity is not None:
        return math.log(measures.perplexity) if measures.perplexity > 0 else math.nan
    return measures.loss


def _choices(prepared: PreparedRun) -> int:
    """Return the number of tokens or classes that the model chooses from."""
    config: Any = prepared.source.config
    if prepared.task.name in ("causal-lm", "seq2seq"):
        return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)
    return int(getattr(config, "num_labels", 0) or 0)


def kept_state(saved: Path | None) -> str:
    """Explain how to get a bad result anyway, after training."""
    if saved is None:
        return "--allow-bad-result keeps such a result"
    return f"the state is kept, and --resume --allow-bad-result writes the result anyway ({saved.parent})"
