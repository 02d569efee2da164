"""Structured pruning without training: score, choose widths, cut and repair, in one or several cuts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from loraprune.allocation.choices import Choice
from loraprune.allocation.measured_widths import WidthTrial
from loraprune.calibration.block_by_block import Calibration, CalibrationPass, calibration_pass, token_sequences
from loraprune.calibration.progress import Progress, ProgressOf
from loraprune.calibration.residual_stream import has_stream
from loraprune.importance.configs import AtConsumers
from loraprune.importance.moving_average import Scores
from loraprune.importance.whole_blocks import built_for
from loraprune.layers.unwrap import eval_mode
from loraprune.processes.ranks import from_main
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.pruning.gradients import gradient_scores
from loraprune.pruning.groups import CutRecord, CutTools, Groups
from loraprune.pruning.width_trials import try_widths
from loraprune.record.saved_steps import SavedSteps
from loraprune.surgery.refit import CutHooks, GroupChooser
from loraprune.surgery.repairs import NoRepair, Refit, Repair, Stream

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import PrunableDimension, Structure
    from loraprune.structure.widths import Widths

logger = logging.getLogger("loraprune")

_NAMES = {"heads": "KV heads"}
"""Kinds whose name in a progress line differs."""


def prune_(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    *,
    repair: Repair,
    cuts: int = 1,
    seed: int = 0,
    device: torch.device | None = None,
    progress: ProgressOf = lambda what, done, total: None,
    saved: SavedSteps | None = None,
) -> list[CutRecord]:
    """Cut a model to its target, in place.

    Scores that read activations are computed twice. The first pass, over the whole model, decides the widths; with
    ``uniform`` they follow from the ratio and there is no first pass. The second goes block by block, on the outputs
    of the blocks cut before, and decides the groups.

    Args:
        model: model without an adapter.
        groups: all groups of the model; afterwards, the remaining ones.
        calibration: token ids or mappings of the model's inputs; may be empty if neither scores nor repair need data.
        repair: repair of the consumers.
        cuts: number of equal steps to the ratio; groups are scored again before each.
        seed: seed of the criterion ``random``.
        device: device to compute on, one block at a time, if it is not the model's.
        progress: called as the work advances.
        saved: finished steps of an interrupted run, and the place to save further ones. A resumed run repeats the
            forward passes of finished blocks, but no scores, choices or repairs.
    """
    records, saved = [], saved or SavedSteps()
    scored = partial(_scored, model, seed=seed, device=device, progress=progress, saved=saved)
    if groups.target.allocation == "measured" and not groups.structure.spans_blocks:
        groups.trials = _tried(model, groups, calibration, scored, repair, device, progress, saved)
    for cut in range(cuts):
        place = f" {cut + 1}/{cuts}" if cuts > 1 else ""
        ratio = groups.target.ratio * (cut + 1) / cuts
        scores = scored(groups, calibration, f"scoring{place}")
        told = partial(progress, f"cutting{place}")
        hooks = CutHooks(device=device, progress=told, saved=saved, name=f"cut{cut + 1}")
        records.append(_cut_once_(model, groups, calibration, scores, ratio, repair, hooks))
    return records


def _scored(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    name: str,
    *,
    seed: int,
    device: torch.device | None,
    progress: ProgressOf,
    saved: SavedSteps,
) -> Scores | None:
    """Return scores of the current model, or None if the cut itself scores block by block."""
    if _widths_follow_from_ratio(groups, calibration):
        return None
    place = name.replace(" ", "-").replace("/", "-of-")
    finished = saved.found(place)
    if finished is not None:
        home = next(model.parameters()).device if finished.facts["on_model"] else None
        return {dimension: value.to(home or value.device) for dimension, value in finished.tensors.items()}
    make_pass = partial(calibration_pass, model, groups.structure, calibration, device)
    scores = score_groups(model, groups, calibration, make_pass, seed=seed, progress=partial(progress, name))
    saved.keep(place, scores, {"on_model": any(value.device.type != "cpu" for value in scores.values())})
    return scores


def _cut_once_(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    scores: Scores | None,
    ratio: float,
    repair: Repair,
    hooks: CutHooks,
) -> CutRecord:
    """Choose widths, cut and repair."""
    before, seen = groups.plan, Scores()
    tools = CutTools(hooks=replace(hooks, choose=_chooser(model, groups.criterion, seen), seen=seen))
    record = groups.cut_(model, scores, ratio, repair=repair, calibration=calibration, tools=tools)
    groups.remember(seen, before)
    return record


def _tried(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    scored: Callable[[Groups, Calibration, str], Scores | None],
    repair: Repair,
    device: torch.device | None,
    progress: ProgressOf,
    saved: SavedSteps,
) -> tuple[WidthTrial, ...]:
    """Try several widths by cutting and repairing the model; the whole model is scored once."""
    known: list[Scores | None] = []

    def cut_(widths: Widths, rows: Calibration) -> None:
        trial = Groups.all_of(groups.structure, groups.target, groups.criterion)
        trial.trials = (WidthTrial(widths, 0.0),)
        if not known:
            known.append(scored(trial, rows, "scoring for the trials"))
        named = ", ".join(f"{width} {_NAMES.get(kind, kind)}" for kind, width in widths.items())
        hooks = CutHooks(device=device, progress=partial(progress, f"trying {named}"))
        _cut_once_(model, trial, rows, known[0], groups.target.ratio, repair, hooks)

    return try_widths(model, groups, calibration, cut_, saved)


def settled_repair(
    repair: Repair, model: nn.Module, structure: Structure, calibration: Calibration, device: torch.device | None = None
) -> Repair:
    """Return the repair to use: ``stream`` needs blocks that only add to a residual stream."""
    if not isinstance(repair, Stream) or "hidden" in structure.kinds:
        return repair
    with eval_mode(model):
        if has_stream(model, structure, calibration, device):
            return repair
    if structure.spans_blocks:
        logger.info(
            "The blocks of this model do more than add their layers' outputs to a residual stream, so nothing is "
            "repaired."
        )
        return NoRepair()
    logger.info(
        "The blocks of this model do more than add their layers' outputs to a residual stream, so the repair fits "
        "each layer's own output (refit)."
    )
    return Refit(repair.damping)


def _widths_follow_from_ratio(groups: Groups, calibration: Calibration) -> bool:
    """Whether the widths need no scores and the cut itself chooses the groups of each block."""
    if groups.target.allocation not in ("uniform", "measured") or not groups.criterion.at_consumers:
        return False
    tied = any(dimension.tied for dimension in groups.structure)
    return bool(token_sequences(groups.structure, calibration)) and not tied


def _chooser(model: nn.Module, criterion: object, seen: Scores) -> GroupChooser | None:
    """Make a chooser that scores groups during the cut and stores the scores in ``seen``.

    None if the criterion does not read activations of consumers.
    """
    if not isinstance(criterion, AtConsumers):
        return None
    at_consumers = criterion

    def choose(dimension: PrunableDimension, count: int, kept: int, calibration: CalibrationPass) -> Sequence[int]:
        scores = consumer_scores(at_consumers, model, dimension, count, calibration)
        seen[dimension.name] = scores
        choice = Choice((dimension,), scores.view(dimension.strata, -1))
        return from_main(lambda: choice.kept(kept // dimension.strata))

    return choose


def score_groups(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    make_pass: Callable[[], CalibrationPass],
    *,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Score all current groups of a model, without training.

    Args:
        model: model at the plan of ``groups``.
        groups: groups to score, with their criterion.
        calibration: token ids or mappings of inputs; may be empty for criteria that only read weights.
        make_pass: function that begins a pass over the same data.
        seed: seed of the criterion ``random``.
        progress: called with finished and total blocks or batches.
    """
    criterion, structure = groups.criterion, groups.structure
    if criterion.reads_gradients:
        return gradient_scores(model, structure, groups.plan, calibration, criterion, progress)
    if not isinstance(criterion, AtConsumers):
        built = built_for(criterion, structure, seed)
        built.attach(model, structure)
        scores = built.scores(groups.plan)
        assert scores is not None
        return scores
    found: Scores = {}
    with eval_mode(model), torch.no_grad():
        progress(0, len(structure.blocks))
        running = make_pass()
        for layer in range(len(structure.blocks)):
            for dimension in structure.of_layer(layer):
                count = groups.plan.count(dimension.name)
                found[dimension.name] = consumer_scores(criterion, model, dimension, count, running)
            running.advance()
            progress(layer + 1, len(structure.blocks))
    return found
