"""Criteria that score groups by the inputs of each consumer during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from loraprune.importance.evidence.inputs import EnteringFeatures
from loraprune.importance.moving_average import Scores
from loraprune.layers.axes import is_matrix
from loraprune.layers.lora import effective_weight
from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.features import FeatureStatistics
    from loraprune.structure.dimensions import PrunableDimension, Structure
    from loraprune.structure.plan import Plan


def group_positions(dimension: PrunableDimension, num_groups: int, length: int) -> torch.Tensor:
    """Columns of the consumer that belong to each group, shape ``(groups, columns a group)``."""
    # All groups in one tensor: a layer has thousands of channels, and this runs at every step.
    groups = torch.arange(num_groups)[:, None]
    parts, offset = [], 0
    for size in dimension.consumer.segments:
        parts.append(offset + groups * size + torch.arange(size))
        offset += num_groups * size
    assert offset <= length
    return torch.cat(parts, dim=1)


class FeatureCriterion:
    """Scores groups by the consumer's weights and the statistics of its inputs since the last step.

    The statistics come from the training's own forward passes. Padding is left out if the model is given a mask. The
    weight is the effective one, ``W + s·B·A``, at the time of scoring.

    Args:
        name: name of the criterion.
        group_scores: scores the groups of one dimension, shape ``(groups,)``, from the consumer's weight, the
            statistics of its inputs and the columns that belong to each group.
    """

    comparable = False
    every_step = True

    def __init__(
        self, name: str, group_scores: Callable[[torch.Tensor, FeatureStatistics, torch.Tensor], torch.Tensor]
    ) -> None:
        self.name, self.group_scores = name, group_scores
        self._model: nn.Module | None = None
        self._structure: Structure | None = None
        self._features: EnteringFeatures | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Watch the inputs of the consumers.

        Raises:
            ValueError: a consumer is not a linear layer.
        """
        base = base_model(model)
        for dimension in structure:
            consumer = dimension.consumer
            if not is_matrix(base.get_submodule(consumer.module), consumer.parameter):
                raise ValueError(
                    f"The criterion {self.name!r} scores groups by the inputs of one linear layer, but "
                    f"{dimension.name} is read by {consumer.module}.{consumer.parameter}, which is not linear. Use the "
                    "criterion 'fisher', or leave this kind out (--dimensions)."
                )
        self._model, self._structure = base, structure
        self._features = EnteringFeatures(base, [dimension.consumer.module for dimension in structure])

    def scores(self, plan: Plan) -> Scores | None:
        """Return scores from the forward passes since the last call, or None if a consumer was not reached."""
        assert self._model is not None
        assert self._structure is not None
        assert self._features is not None
        statistics = self._features.take()
        scores: Scores = {}
        for dimension in self._structure:
            name = dimension.consumer.module
            if name not in statistics:
                return None
            weight_OI = effective_weight(self._model.get_submodule(name))
            positions = group_positions(dimension, plan.count(dimension.name), weight_OI.shape[1])
            scores[dimension.name] = self.group_scores(weight_OI, statistics[name], positions.to(weight_OI.device))
        return scores

    def detach(self) -> None:
        """Stop watching."""
        if self._features is not None:
            self._features.remove()
        self._model = self._structure = self._features = None
