"""Options that reduce memory if a run does not fit an accelerator, mildest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraprune.measure.estimation.config import EstimateConfig

LEAST_BYTES = {"bnb-8bit": 1.0, "torchao-int8": 1.0, "bnb-4bit": 0.5}
"""Minimum bytes per weight."""

FEWER_SEQUENCES = 32
LIGHTER = {
    None: (("--load-in-8bit", "bnb-8bit"), ("--load-in-4bit", "bnb-4bit")),
    "bnb-8bit": (("--load-in-4bit", "bnb-4bit"),),
    "torchao-int8": (("--load-in-4bit", "bnb-4bit"),),
    "bnb-4bit": (),
}
"""Quantizations that need less memory than the current one, with their options."""


def remedies(settings: EstimateConfig, *, can_recompute: bool) -> Iterator[tuple[str, EstimateConfig]]:
    """Return ways to reduce memory, each as command-line options and as settings.

    Args:
        settings: settings of the run that does not fit.
        can_recompute: whether the model can recompute activations.
    """
    flags: list[str] = []
    if can_recompute and not settings.gradient_checkpointing:
        flags, settings = ["--gradient-checkpointing"], replace(settings, gradient_checkpointing=True)
        yield from _with_fewer_sequences(flags, settings)
    for batch in _batches(flags, settings):
        yield from _with_fewer_sequences(*batch)
    for flag, quantization in LIGHTER[settings.quantization]:
        lighter = ([*flags, flag], replace(settings, quantization=quantization))
        yield from _with_fewer_sequences(*lighter)
        for batch in _batches(*lighter):
            yield from _with_fewer_sequences(*batch)
    yield from _without_refit(flags, settings)


def _batches(flags: list[str], settings: EstimateConfig) -> Iterator[tuple[list[str], EstimateConfig]]:
    """The same step in micro-batches of one row."""
    if settings.batch_size > 1:
        rows = settings.batch_size * settings.gradient_accumulation_steps
        more = f"--per-device-train-batch-size 1 --gradient-accumulation-steps {rows}"
        yield [*flags, more], replace(settings, batch_size=1, gradient_accumulation_steps=rows)


def _without_refit(flags: list[str], settings: EstimateConfig) -> Iterator[tuple[str, EstimateConfig]]:
    """The lightest base in micro-batches of one row, then without repair after a cut, which costs the most quality."""
    if not settings.pruning.repairs:
        return
    if settings.quantization != "bnb-4bit":
        flags, settings = [*flags, "--load-in-4bit"], replace(settings, quantization="bnb-4bit")
    for more, changed in [*_batches(flags, settings), (flags, settings)][:1]:
        yield " ".join([*more, "--repair none"]), replace(changed, pruning=changed.pruning.changed(repair="none"))


def _with_fewer_sequences(flags: list[str], settings: EstimateConfig) -> Iterator[tuple[str, EstimateConfig]]:
    """The same, then with less calibration data for the refit."""
    yield " ".join(flags), settings
    pruning = settings.pruning
    if pruning.repairs and pruning.calibration_sequences > FEWER_SEQUENCES:
        fewer = pruning.changed(calibration_sequences=FEWER_SEQUENCES)
        yield " ".join([*flags, f"--calibration-sequences {FEWER_SEQUENCES}"]), replace(settings, pruning=fewer)
