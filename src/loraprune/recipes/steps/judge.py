"""Whether a result is one that anybody wants: cuts that were made, and a model that knows more than chance does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.errors import BadResultError
from loraprune.recipes.steps.prepared import PreparedRun
from loraprune.record.run_record import ModelMeasures, RunMetrics

_AT_CHANCE = 0.995
"""From this share of a uniform guess's loss on, a result counts as no better."""

_CLEARLY_BETTER = 0.95
"""Below this share of it, the model before the run was better than chance."""


def check_result(prepared: PreparedRun, metrics: RunMetrics, pruning: PruningCallback | None, remedy: str) -> None:
    """Refuse a result that nobody wants, unless the user allowed it.

    A model that was no better than chance before the run (a fresh head, random weights) may be so afterwards.

    Args:
        prepared: that was done.
        metrics: of the model before and after.
        pruning: of a run with training.
        remedy: how to have the result all the same.

    Raises:
        BadResultError: it says what is wrong with the result.
    """
    if prepared.options.allow_bad_result:
        return
    found = _course(pruning) if pruning is not None else []
    found += _quality(prepared, metrics, pruning)
    if found:
        advice = "Try a lower learning rate, and check the data" if pruning else "Try a lower ratio or a repair"
        raise BadResultError(f"{' '.join(found)} Nothing was written. {advice}; {remedy}.")


def cuts_missing(pruning: PruningCallback) -> str | None:
    """That cuts were not made, and why; None where all were."""
    run = pruning.run
    assert run is not None
    if not run.pending:
        return None
    skipped = len(pruning.skipped_steps)
    why = f"{skipped} of {pruning.steps} steps were skipped for NaN or Inf" if skipped else "training ended before them"
    return f"{len(run.pending)} of {len(run.schedule)} cuts were not made ({why}): the ratio is {run.ratio:.2%}."


def _course(pruning: PruningCallback) -> list[str]:
    """What went wrong on the way."""
    missing = cuts_missing(pruning)
    if missing is not None:
        return [missing]
    if pruning.steps and len(pruning.skipped_steps) >= pruning.steps:
        return [f"All {pruning.steps} steps were skipped for NaN or Inf in the gradients: nothing was tuned."]
    return []


def _quality(prepared: PreparedRun, metrics: RunMetrics, pruning: PruningCallback | None) -> list[str]:
    """Whether the result is no better than a uniform guess, where the model before it was."""
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
    """Held-out loss in nats; None where it was not measured."""
    if measures.perplexity is not None:
        return math.log(measures.perplexity) if measures.perplexity > 0 else math.nan
    return measures.loss


def _choices(prepared: PreparedRun) -> int:
    """Among how many tokens or classes the model chooses."""
    config: Any = prepared.source.config
    if prepared.task.name in ("causal-lm", "seq2seq"):
        return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)
    return int(getattr(config, "num_labels", 0) or 0)


def kept_state(saved: Path | None) -> str:
    """How to have the result all the same, after training."""
    if saved is None:
        return "--allow-bad-result keeps such a result"
    return f"the state is kept, and --resume --allow-bad-result writes the result all the same ({saved.parent})"
