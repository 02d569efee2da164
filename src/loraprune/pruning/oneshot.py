"""Structured pruning without training: score, choose widths, cut and repair, in one cut or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch

from loraprune.allocation.allocate import allocate
from loraprune.allocation.choices import Choice
from loraprune.calibration.block_by_block import Calibration, CalibrationPass, calibration_pass, token_sequences
from loraprune.calibration.progress import Progress, ProgressOf
from loraprune.calibration.residual_stream import has_stream
from loraprune.importance.criterion import Criterion, CriterionOptions
from loraprune.importance.flap import standardized
from loraprune.importance.moving_average import Scores
from loraprune.importance.registry import make_criterion
from loraprune.importance.whole_blocks import for_structure
from loraprune.layers.unwrap import eval_mode
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.pruning.gradients import gradient_scores
from loraprune.structure.plan import Plan
from loraprune.surgery.output_error import ConsumerError
from loraprune.surgery.refit import GroupChooser, cut_and_repair_

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import PrunableDimension, Structure
    from loraprune.structure.widths import LegalWidths


logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class StructuredOptions:
    """What is cut, and how it is repaired.

    Attributes:
        ratio: share of the prunable parameters that goes.
        scores: how groups are scored.
        allocation: ``uniform``, ``balanced`` or ``global``: see :func:`loraprune.allocation.allocate.allocate`.
        repair: ``stream``, ``refit``, ``bias`` or ``none``: see :func:`loraprune.surgery.refit.cut_and_repair_`.
        damping: of the refit.
        cuts: the ratio is reached in so many equal steps; groups are scored anew before each.
        device: to compute on, one block at a time, where that is not the model's.
    """

    ratio: float
    scores: ScoreOptions
    allocation: str = "uniform"
    repair: str = "stream"
    damping: float = 0.01
    cuts: int = 1
    device: torch.device | None = None


@dataclass(frozen=True, kw_only=True)
class StructuredResult:
    """What was cut.

    Attributes:
        plan: groups that stayed.
        importance: last score of every group; shape ``(num_groups,)`` each.
        errors: of each consumer that least squares repaired, cut by cut.
    """

    plan: Plan
    importance: Scores = field(default_factory=dict)
    errors: tuple[tuple[ConsumerError, ...], ...] = ()


def prune_(
    model: nn.Module,
    structure: Structure,
    legal: LegalWidths,
    calibration: Calibration,
    options: StructuredOptions,
    progress: ProgressOf = lambda what, done, total: None,
) -> StructuredResult:
    """Cut a model, in place.

    Scores that look at activations are taken twice: once on the whole model, to choose the widths (not for
    ``uniform``, where they follow from the ratio), and again block by block on what the cut blocks before have become,
    to choose the groups.

    Args:
        model: without an adapter.
        structure: its description.
        legal: widths that may be chosen.
        calibration: token ids or mappings of the model's inputs; may be empty where neither scores nor repair look
            at data.
        options: how.
        progress: hears how far the work is.
    """
    plan = Plan.full(structure)
    importance: Scores = {}
    errors: list[tuple[ConsumerError, ...]] = []
    for cut in range(options.cuts):
        place = f" {cut + 1}/{options.cuts}" if options.cuts > 1 else ""
        if _widths_follow_from_ratio(structure, calibration, options):
            # Any scores do: the groups are chosen when their block is reached.
            scores = {dimension.name: torch.ones(plan.count(dimension.name)) for dimension in structure}
        else:
            scores = _scores(model, structure, plan, calibration, options, partial(progress, f"scoring{place}"))
            _remember(importance, structure, plan, scores)
        ranked = options.scores.own is None and options.scores.method == "flap" and options.allocation == "global"
        if ranked:
            scores = {name: standardized(values) for name, values in scores.items()}
        after = allocate(
            structure,
            plan,
            scores,
            options.ratio * (cut + 1) / options.cuts,
            legal,
            options.allocation,
            final_ratio=options.ratio,
            comparable=options.scores.comparable,
            ranked=ranked,
        )
        before, seen = plan, Scores()
        noted: list[ConsumerError] = []
        plan = cut_and_repair_(
            model,
            structure,
            plan,
            after,
            calibration=calibration or None,
            damping=options.damping,
            repair=options.repair,
            choose=_chooser(model, options, seen) if options.scores.at_consumers else None,
            device=options.device,
            progress=partial(progress, f"cutting{place}"),
            noted=noted.append,
        )
        _remember(importance, structure, before, seen)
        errors.append(tuple(noted))
    return StructuredResult(plan=plan, importance=importance, errors=tuple(errors))


def settled_repair(
    repair: str, model: nn.Module, structure: Structure, calibration: Calibration, device: torch.device | None = None
) -> str:
    """The repair that is done: towards the residual stream only where there is one."""
    if repair != "stream" or structure.spans_blocks:
        return repair
    with eval_mode(model):
        if has_stream(model, structure, calibration, device):
            return repair
    logger.info(
        "Blocks of this model do more than to add their layers' outputs to a residual stream, so that the refit "
        "restores what each layer gave itself."
    )
    return "refit"


def _scores(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    calibration: Calibration,
    options: StructuredOptions,
    progress: Progress,
) -> Scores:
    """Scores to allocate by."""
    make_pass = partial(calibration_pass, model, structure, calibration, options.device)
    return score_groups(model, structure, plan, options.scores, calibration, make_pass, progress)


def _widths_follow_from_ratio(structure: Structure, calibration: Calibration, options: StructuredOptions) -> bool:
    """Whether no score is needed to choose the widths, and the cut itself chooses the groups of every block."""
    if options.allocation != "uniform" or not options.scores.at_consumers:
        return False
    tied = any(dimension.tied for dimension in structure)
    return bool(token_sequences(structure, calibration)) and not tied


def _chooser(model: nn.Module, options: StructuredOptions, seen: Scores) -> GroupChooser:
    """Chooses groups by their scores at the time; notes these in ``seen``."""

    def choose(dimension: PrunableDimension, count: int, kept: int, calibration: CalibrationPass) -> Sequence[int]:
        scores = consumer_scores(options.scores.method, model, dimension, count, calibration, options.scores.damping)
        seen[dimension.name] = scores
        return Choice((dimension,), scores.view(dimension.strata, -1)).kept(kept // dimension.strata)

    return choose


def _remember(importance: Scores, structure: Structure, plan: Plan, scores: Scores) -> None:
    """Note scores of groups that a plan keeps under the groups' first numbers."""
    for dimension in structure:
        name = dimension.name
        if name not in scores:
            continue
        known = importance.setdefault(name, torch.full((dimension.num_groups,), float("nan")))
        known[list(plan.kept[name])] = scores[name].float().cpu()


# The methods by name, and one score for every group of a model by any of them.

StructuredMethod = Literal["fisher", "taylor", "osscar", "flap", "wanda", "magnitude", "random", "position"]
STRUCTURED_METHODS: tuple[str, ...] = get_args(StructuredMethod)
GRADIENT_METHODS = ("fisher", "taylor")
CONSUMER_METHODS = ("osscar", "flap", "wanda")
WEIGHT_METHODS = ("magnitude", "random", "position")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How groups are scored.

    Attributes:
        method: one of :data:`STRUCTURED_METHODS`.
        damping: of ``osscar``.
        seed: of ``random``.
        taylor_form, group_reduction, offload_grads, own: as in
            :class:`~loraprune.importance.criterion.CriterionOptions`.
    """

    method: str
    damping: float = 0.01
    seed: int = 42
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False
    own: Criterion | None = None

    @property
    def criterion(self) -> CriterionOptions:
        """For the methods that are criteria of the joint recipe too."""
        return CriterionOptions(
            name=self.method,
            taylor_form=self.taylor_form,
            group_reduction=self.group_reduction,
            offload_grads=self.offload_grads,
            seed=self.seed,
            own=self.own,
        )

    @property
    def at_consumers(self) -> bool:
        """Whether groups are scored anew at each consumer, when its block is reached."""
        return self.own is None and self.method in CONSUMER_METHODS

    @property
    def comparable(self) -> bool:
        """Whether scores have one unit over all layers and kinds: a change of the loss."""
        return self.method in GRADIENT_METHODS if self.own is None else self.own.comparable


def score_groups(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    options: ScoreOptions,
    calibration: Calibration,
    make_pass: Callable[[], CalibrationPass],
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Score all groups that a model has now, as it is now.

    Args:
        model: at ``plan``.
        structure: of the model before any pruning.
        plan: groups that it has.
        options: how.
        calibration: token ids or mappings of inputs; may be empty for methods that read weights alone.
        make_pass: begins a pass over the same data.
        progress: hears how far the work is.
    """
    method = options.method
    if method in WEIGHT_METHODS and options.own is None:
        criterion = for_structure(make_criterion(options.criterion), method, structure)
        criterion.attach(model, structure)
        scores = criterion.scores(plan)
        assert scores is not None
        return scores
    if method in GRADIENT_METHODS or options.own is not None:
        return gradient_scores(model, structure, plan, calibration, options.criterion, progress)
    found: Scores = {}
    with eval_mode(model), torch.no_grad():
        progress(0, len(structure.blocks))
        calibration_pass = make_pass()
        for layer in range(len(structure.blocks)):
            for dimension in structure.of_layer(layer):
                count = plan.count(dimension.name)
                found[dimension.name] = consumer_scores(
                    method, model, dimension, count, calibration_pass, options.damping
                )
            calibration_pass.advance()
            progress(layer + 1, len(structure.blocks))
    return found
