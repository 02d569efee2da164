"""The methods by name, and one score for every group of a model by any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from loraprune.calibration.block_by_block import Calibration, CalibrationPass
from loraprune.calibration.progress import Told
from loraprune.importance.moving_average import Scores
from loraprune.importance.options import CriterionOptions
from loraprune.importance.registry import make_criterion
from loraprune.importance.whole_blocks import for_structure
from loraprune.layers.inference import inference_mode
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.pruning.gradients import gradient_scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

StructuredMethod = Literal["fisher", "taylor", "osscar", "flap", "wanda", "magnitude", "random", "position"]
STRUCTURED_METHODS: tuple[str, ...] = get_args(StructuredMethod)
GRADIENT_METHODS = ("fisher", "taylor")
CONSUMER_METHODS = ("osscar", "flap", "wanda")
WEIGHT_METHODS = ("magnitude", "random", "position")

COMPARABLE = GRADIENT_METHODS
"""Methods whose scores have one unit over all layers and kinds: a change of the loss."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How groups are scored.

    Attributes:
        method: one of :data:`STRUCTURED_METHODS`.
        damping: of ``osscar``.
        seed: of ``random``.
        taylor_form, group_reduction, offload_grads: as in :class:`~loraprune.importance.options.CriterionOptions`.
    """

    method: str
    damping: float = 0.01
    seed: int = 42
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False

    @property
    def criterion(self) -> CriterionOptions:
        """For the methods that are criteria of the joint recipe too."""
        return CriterionOptions(
            name=self.method,
            taylor_form=self.taylor_form,
            group_reduction=self.group_reduction,
            offload_grads=self.offload_grads,
            seed=self.seed,
        )


def score_groups(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    options: ScoreOptions,
    calibration: Calibration,
    make_pass: Callable[[], CalibrationPass],
    told: Told = lambda done, total: None,
) -> Scores:
    """Score all groups that a model has now, as it is now.

    Args:
        model: at ``plan``.
        structure: of the model before any pruning.
        plan: groups that it has.
        options: how.
        calibration: token ids or mappings of inputs; may be empty for methods that read weights alone.
        make_pass: begins a pass over the same data.
        told: hears how far the work is.
    """
    method = options.method
    if method in WEIGHT_METHODS:
        criterion = for_structure(make_criterion(options.criterion), method, structure)
        criterion.attach(model, structure)
        scores = criterion.scores(plan)
        assert scores is not None
        return scores
    if method in GRADIENT_METHODS:
        return gradient_scores(model, structure, plan, calibration, options.criterion, told)
    found: Scores = {}
    with inference_mode(model), torch.no_grad():
        told(0, len(structure.blocks))
        calibration_pass = make_pass()
        for layer in range(len(structure.blocks)):
            for dimension in structure.of_layer(layer):
                count = plan.count(dimension.name)
                found[dimension.name] = consumer_scores(
                    method, model, dimension, count, calibration_pass, options.damping
                )
            calibration_pass.advance()
            told(layer + 1, len(structure.blocks))
    return found
