"""Goals instead of a ratio: a size, a speed or a smaller cache; converted to a ratio or to widths before the run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from loraprune.allocation.allocate import ratio_for_parameters
from loraprune.measure.benchmark.random_inputs import InputSize
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.estimation.smaller_cache import widths_of_smaller_cache
from loraprune.measure.width_times import SpeedGoal, TimedWork, time_widths
from loraprune.processes.ranks import from_main
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.structure.given_widths import write_widths
from loraprune.structure.matching_widths import ratio_of_most_even, widths_within
from loraprune.structure.widths import LegalWidths, widest

if TYPE_CHECKING:
    from loraprune.checkpoint.source import ModelSource
    from loraprune.recipes.steps.prepared import PreparedRun
    from loraprune.record.run_record import RunMetrics
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan
    from loraprune.tasks.options import RunOptions

logger = logging.getLogger("loraprune")

PREFILL_TOKENS = 2048

GOALS = ("target_params", "target_size", "target_kv_cache", "speedup")
"""Options of a run that replace a ratio."""

Config = TypeVar("Config", PruningConfig, OneshotConfig)


def given_goal(options: RunOptions) -> str | None:
    """Return the name of the first goal among the options, or None."""
    return next((name for name in GOALS if getattr(options, name) is not None), None)


def check_goals(options: RunOptions) -> None:
    """Refuse several goals that each set the amount to remove.

    Raises:
        ValueError: there are several.
    """
    given = [name for name in ("target_params", "target_size", "speedup") if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} both set the amount to remove. Give one of them.")


def settle_goals(
    config: Config,
    structure: Structure,
    source: ModelSource,
    options: RunOptions,
    dtype: torch.dtype,
    *,
    begun: str | None = None,
) -> tuple[Config, SpeedGoal | None]:
    """Convert the goal of a run to a ratio or to widths.

    Args:
        config: pruning configuration.
        structure: structure of the model.
        source: source of the model.
        options: options of the run.
        dtype: dtype of the saved result.
        begun: widths that a resumed run was started with; measured times may have changed since.

    Returns:
        The configuration with the ratio or the widths, and the speed goal, or None.

    Raises:
        ValueError: the goal cannot be reached, or does not go with the other options.
    """
    check_goals(options)
    goal = None
    if options.keep_quantized and not (options.target_size is None and options.speedup is None):
        raise ValueError(
            "target_size and speedup are for a result in 16 or 32 bits, and keep_quantized makes a quantized one. "
            "Leave one out, or use target_params."
        )
    if options.target_params is not None:
        config = _with_ratio(config, ratio_for_parameters(structure, options.target_params))
    elif options.target_size is not None:
        config = _with_ratio(config, ratio_for_parameters(structure, int(options.target_size) // dtype.itemsize))
    shapes = None
    if options.speedup is not None or options.target_kv_cache is not None:
        _check_same_widths(config)
        shapes = ShapeModels.of(source, config.target.dimensions, config.target.keep_layers)
    if options.speedup is not None:
        assert shapes is not None
        legal = replace(config.target, widths=None).legal_widths(structure)
        timed = shapes
        # One process measures for all, because measured times differ.
        goal = from_main(lambda: _speed_goal(timed, legal, options, source, dtype))
        if begun is None:
            found = widths_within(structure, legal, lambda widths: goal.times.speedup(widths) >= goal.asked)
            if not found:
                raise ValueError(_too_fast(structure, legal, goal))
            config = config.changed(widths=write_widths(found))
    if begun is not None and shapes is not None:
        config = config.changed(widths=begun)
    elif options.target_kv_cache is not None:
        assert shapes is not None
        alone = all(goal is None for goal in (options.target_params, options.target_size, options.speedup))
        wanted = options.target_kv_cache
        config = config.changed(widths=widths_of_smaller_cache(shapes, config.target, wanted, dtype, alone=alone))
    if config.target.widths is not None:
        legal = config.target.legal_widths(structure)
        config = config.changed(ratio=ratio_of_most_even(structure, legal))
    return config, goal


def _with_ratio(config: Config, ratio: float) -> Config:
    return config.changed(ratio=ratio, widths=None)


def _check_same_widths(config: PruningConfig | OneshotConfig) -> None:
    if config.target.allocation == "global":
        raise ValueError(
            "The goals speedup and target_kv_cache need the same widths in every layer, and the allocation 'global' "
            "varies them. Leave --allocation out."
        )


def _speed_goal(
    shapes: ShapeModels, legal: LegalWidths, options: RunOptions, source: ModelSource, dtype: torch.dtype
) -> SpeedGoal:
    assert options.speedup is not None
    tokens = options.speedup_tokens or min(PREFILL_TOKENS, source.context or PREFILL_TOKENS)
    if source.context is not None and tokens > source.context:
        raise ValueError(f"speedup_tokens is {tokens}, above the context of {source.name}: {source.context} tokens.")
    work = TimedWork(phase=options.speedup_phase, size=InputSize(batch_size=options.speedup_batch, tokens=tokens))
    computed = torch.float32 if source.device.type == "cpu" else dtype
    logger.info("Timing blocks at several widths")
    times = time_widths(shapes, legal, work, dtype=computed, device=source.device)
    return SpeedGoal(asked=options.speedup, work=work, times=times)


def _too_fast(structure: Structure, legal: LegalWidths, goal: SpeedGoal) -> str:
    smallest = {
        kind: legal.counts[kind][0] if kind in legal.counts else min(legal.multiples[kind], widest(structure, kind))
        for kind in structure.kinds
    }
    most = goal.times.speedup(smallest)
    return (
        f"A speed-up of {goal.asked:g} cannot be reached: with the smallest widths, {goal.times.work} take "
        f"{1 / most:.0%} of the time, which is {most:.2f} times as fast. Lower the speed-up, or prune whole blocks "
        "(--dimensions blocks)."
    )


def speed_notes(prepared: PreparedRun, plan: Plan, metrics: RunMetrics) -> tuple[str, ...]:
    """Return a note with the speed goal, the expected and the measured speed-up."""
    goal, structure = prepared.goal, prepared.structure
    if goal is None:
        return ()
    widths = {
        kind: max(
            plan.count(dimension.name) // dimension.strata
            for dimension in structure.of_kind(kind)
            if dimension.layer not in structure.protected and dimension.per_stratum == widest(structure, kind)
        )
        for kind in structure.kinds
    }
    before, after = metrics.dense.latency_ms, metrics.pruned.latency_ms
    reached = f"; the result is {before / after:.2f} times as fast" if before and after else ""
    return (
        f"The goal was a speed-up of {goal.asked:g} ({goal.times.work}); from timed blocks, "
        f"{goal.times.speedup(widths):.2f} was expected{reached}.",
    )
