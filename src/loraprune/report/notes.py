"""Sentences under the table of a run: the chosen widths, if several were tried, and the tuning of the norms."""

from __future__ import annotations

from collections.abc import Mapping

from loraprune.record.run_record import RunMetrics

_NAMES = {
    "heads": "KV heads",
    "query_heads": "query heads of each KV head",
    "channels": "channels",
    "expert_channels": "channels of each expert",
    "shared_channels": "channels of the shared expert",
}


def notes_on_widths(metrics: RunMetrics) -> tuple[str, ...]:
    """Return one sentence: the chosen widths, and the divergence from the dense model of these and the other trials."""
    trials = () if metrics.pruning is None else metrics.pruning.trials
    if len(trials) < 2:
        return ()
    best, second = trials[0], next((trial for trial in trials[1:] if trial.even), trials[1])
    kept = " and ".join(_kept(kind, width, best.of) for kind, width in best.widths.items())
    other = " and ".join(_kept(kind, width, second.of) for kind, width in second.widths.items())
    name = "the even split" if second.even else "the next best"
    return (
        f"Each layer keeps {kept}: of {len(trials)} choices tried, this one changes the predictions least "
        f"(KL divergence {_number(best.divergence)} nats per token; {name}, {other}: {_number(second.divergence)}).",
    )


def notes_on_norms(metrics: RunMetrics) -> tuple[str, ...]:
    """Return one sentence: the divergence from the dense model before and after the norms were tuned."""
    norms = None if metrics.pruning is None else metrics.pruning.norms
    if norms is None:
        return ()
    where = "on calibration rows that were held back"
    before, after = _apart(norms.before, norms.after)
    if not norms.steps:
        return (
            f"The norms are unchanged: tuning them did not lower the KL divergence from the dense model ({before} nats "
            f"per token, {where}).",
        )
    return (
        f"{norms.steps} steps on the norms lowered the KL divergence from the dense model from {before} to {after} "
        f"nats per token, {where}.",
    )


def _kept(kind: str, width: int, full: Mapping[str, int]) -> str:
    name = _NAMES.get(kind, kind.replace("_", " "))
    return f"all {width:,} {name}" if width == full[kind] else f"{width:,} of {full[kind]:,} {name}"


def _apart(before: float | None, after: float | None) -> tuple[str, str]:
    """Format two divergences with as many digits as it takes to tell them apart: three to six."""
    texts = [(_number(before, digits), _number(after, digits)) for digits in (3, 4, 5, 6)]
    return next(((first, second) for first, second in texts if first != second), texts[0])


def _number(divergence: float | None, digits: int = 3) -> str:
    return "not a number" if divergence is None else f"{divergence:.{digits}g}"
