"""Scores of whole blocks by criteria that read the weights of a group: the sum over all linear layers of the block."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from loraprune.importance.criterion import Criterion
from loraprune.importance.moving_average import Scores
from loraprune.layers.axes import axis_length, is_matrix, is_stacked
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.structure.dimensions import Member, PrunableDimension
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from loraprune.importance.criterion_config import CriterionConfig
    from loraprune.structure.dimensions import Structure


def _members(model: nn.Module, block: str) -> tuple[Member, ...]:
    """All linear layers and stacked experts of a block, each as one group with all of its weights."""
    found = []
    for path, module in model.get_submodule(block).named_modules():
        if ".base_layer" in f".{path}" or ".lora_" in f".{path}":
            continue
        name = f"{block}.{path}"
        if is_matrix(module):
            found.append(Member(module=name, axis="output", segments=(axis_length(module, "output"),)))
        for parameter, _ in base_layer(module).named_parameters(recurse=False):
            if is_stacked(base_layer(module), parameter):
                experts = int(getattr(base_layer(module), parameter).shape[0])
                found.append(Member(module=name, axis="experts", segments=(experts,), parameter=parameter))
    return tuple(found)


def block_by_block(model: nn.Module, structure: Structure) -> Structure:
    """A structure in which each current block of a model is a dimension with one group: all of its linear layers."""
    (blocks,) = structure.of_kind("blocks")
    base = base_model(model)
    dimensions = []
    for number, _ in enumerate(base.get_submodule(blocks.consumer.module).children()):
        members = _members(base, f"{blocks.consumer.module}.{number}")
        dimensions.append(
            PrunableDimension(
                name=f"{blocks.name}.{number}",
                kind=blocks.kind,
                layer=number,
                num_groups=1,
                members=members[:-1],
                consumer=members[-1],
                parameters_per_group=blocks.parameters_per_group,
            )
        )
    present = tuple(f"{blocks.consumer.module}.{dimension.layer}" for dimension in dimensions)
    return replace(structure, blocks=present, dimensions=tuple(dimensions))


def joined_scores(structure: Structure, scores: Scores) -> Scores:
    """Join the scores of single blocks, in order, into those of the dimension of which they are the groups."""
    (blocks,) = structure.of_kind("blocks")
    return {blocks.name: torch.cat(list(scores.values()))}


class WholeBlocks:
    """Applies a criterion that reads weights to whole blocks.

    Args:
        criterion: criterion that scores groups by their members.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.comparable, self.every_step = criterion.comparable, criterion.every_step
        self.inner = criterion
        self._model: nn.Module | None = None
        self._structure: Structure | None = None
        self._alone: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Attach the criterion to each block."""
        self._model, self._structure = model, structure
        self._alone = block_by_block(model, structure)
        self.inner.attach(model, self._alone)

    def scores(self, plan: Plan) -> Scores | None:
        """Return one score per block, or None if the criterion has none yet."""
        assert self._model is not None
        assert self._structure is not None
        assert self._alone is not None
        (blocks,) = self._structure.of_kind("blocks")
        if len(self._alone.dimensions) != plan.count(blocks.name):  # blocks were removed, the others renumbered
            self.inner.detach()
            self.attach(self._model, self._structure)
        scores = self.inner.scores(Plan.full(self._alone))
        return None if scores is None else joined_scores(self._structure, scores)

    def detach(self) -> None:
        """Detach the criterion."""
        self.inner.detach()
        self._model = self._structure = self._alone = None


def built_for(config: CriterionConfig, structure: Structure, seed: int = 0) -> Criterion:
    """Build a criterion for what is pruned, wrapped for whole blocks if needed; ``seed`` is that of the run."""
    criterion = config.build(seed)
    return WholeBlocks(criterion) if config.sums_weights and "blocks" in structure.kinds else criterion


def tell_micro_batches(criterion: Criterion, count: int | None) -> None:
    """Tell a criterion that has ``micro_batches`` how many backward passes an optimizer step has."""
    inner = criterion.inner if isinstance(criterion, WholeBlocks) else criterion
    if hasattr(inner, "micro_batches"):
        inner.micro_batches = count
