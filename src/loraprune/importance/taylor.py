"""Importance from the gradients of the weights: the vanilla criterion, and those of LLM-Pruner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.importance.evidence.weight_gradients import WeightGradients
from loraprune.importance.moving_average import Scores
from loraprune.importance.reductions import over_experts, over_rows, reduced
from loraprune.importance.taylor_forms import LayerTaylor, importance
from loraprune.layers.axes import is_matrix, is_stacked, is_transposed
from loraprune.layers.lora import effective_expert_weight, effective_weight
from loraprune.layers.unwrap import base_layer, base_model, gradients_only

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Member, Structure
    from loraprune.structure.plan import Plan


def _weighted_members(model: nn.Module, members: tuple[Member, ...]) -> Iterator[tuple[nn.Module, Member]]:
    """Layers of a dimension whose weights count: linear ones and stacked experts; norms and biases do not."""
    for member in members:
        module = base_model(model).get_submodule(member.module)
        if is_matrix(module, member.parameter) or is_stacked(base_layer(module), member.parameter):
            yield module, member


def _base_parameter(module: nn.Module, member: Member) -> Any:
    """Base weight of a member, in its stored layout."""
    return getattr(base_layer(module), member.parameter)


@contextmanager
def base_gradients(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Make backward passes leave gradients in exactly the weights that :func:`taylor_scores` reads.

    Inside, no other parameter receives a gradient: those of embeddings, head and adapters would only take memory.
    Afterwards every parameter requires gradients as before, and the weights have none. Gradients that the weights had
    before are dropped, so nothing is added to them.

    Raises:
        ValueError: a weight cannot have a gradient because it is quantized.
    """
    weights = {}
    for dimension in structure:
        for module, member in _weighted_members(model, dimension.all_members):
            weight = _base_parameter(module, member)
            if not weight.is_floating_point():
                raise ValueError(
                    f"The score 'taylor' needs the gradient of {member.module}.{member.parameter}, which is quantized "
                    f"({weight.dtype}). Load the model in bfloat16, or use the score 'fisher'."
                )
            weights[id(weight)] = weight
    try:
        with gradients_only(model, weights.values()):
            for weight in weights.values():
                weight.grad = None
            yield
    finally:
        for weight in weights.values():
            weight.grad = None


def _gradient(module: nn.Module, member: Member) -> torch.Tensor:
    """Gradient of a member's base weight as a view, (out, in) or, for stacked experts, (experts, out, in)."""
    gradient: torch.Tensor | None = _base_parameter(module, member).grad
    if gradient is None:
        raise ValueError(
            f"The base weight {member.module}.{member.parameter} has no gradient. Run the forward and backward passes "
            "inside base_gradients(model, structure), and read the scores before it ends."
        )
    layer = base_layer(module)
    stored_io = is_transposed(layer) if gradient.dim() == 2 else getattr(layer, "is_transposed", False)
    return gradient.mT if stored_io else gradient


@torch.no_grad()
def summed_taylor(module: nn.Module, member: Member, num_groups: int, form: str = "squared") -> torch.Tensor:
    """Sum of the importance of one layer's weights in each group, shape ``(num_groups,)``.

    ``form`` is ``squared`` or ``first``: see :func:`loraprune.importance.taylor_forms.importance`.
    """
    gradient = _gradient(module, member)
    if gradient.dim() == 3:
        return over_experts(
            module,
            member,
            num_groups,
            lambda expert: importance(
                effective_expert_weight(module, member.parameter, expert), gradient[expert], None, form
            ),
        )
    return over_rows(
        module, member, num_groups, lambda rows: importance(effective_weight(module, rows), gradient[rows], None, form)
    )


def taylor_scores(
    model: nn.Module, structure: Structure, plan: Plan, form: str = "squared", reduction: str = "sum"
) -> Scores:
    """Importance of each group, from the current gradients of the base weights of all of its layers.

    ``W`` is the effective weight ``W + s·B·A``. Its gradient is that of the base weight, with or without an adapter.

    Args:
        model: model after one or several backward passes inside :func:`base_gradients`.
        structure: structure of the model before any pruning.
        plan: current plan of the model.
        form: ``squared`` or ``first``.
        reduction: how the scores of a group's layers are combined, see
            :func:`loraprune.importance.reductions.reduced`.

    Returns:
        One score per group, float32, by name of the dimension.

    Raises:
        ValueError: a weight has no gradient.

    Source: LoRAPrune (arXiv 2305.18403), its vanilla criterion, and LLM-Pruner (arXiv 2305.11627).
    """
    return {
        dimension.name: reduced(
            [
                summed_taylor(module, member, plan.count(dimension.name), form)
                for module, member in _weighted_members(model, dimension.all_members)
            ],
            reduction,
        )
        for dimension in structure
    }


class TaylorCriterion:
    """Importance from the exact gradient of every weight of a group, with or without training.

    The backward pass computes one more product per layer, of the size of the layer's own. The memory depends on the
    form and on the step. ``second`` and ``vectorize`` add up over micro-batches, and in a step with one micro-batch
    all forms are summed immediately. Otherwise the gradient of every layer is kept until the end of the step, on the
    layer's device or in CPU memory.

    Args:
        form: see :func:`loraprune.importance.taylor_forms.importance`. ``vectorize`` sums over one row of the weight
            (one column for a consumer), and adds the absolute values of a group's rows.
        reduction: how the scores of a group's layers are combined, see
            :func:`loraprune.importance.reductions.reduced`.
        offload: whether gradients that must be kept are kept in CPU memory.

    Attributes:
        micro_batches: backward passes per step, or None if unknown.

    Source: LoRAPrune (arXiv 2305.18403), section 3.2 and Table 6; LLM-Pruner (arXiv 2305.11627), section 3.2.
    """

    comparable = True
    every_step = True

    def __init__(self, form: str = "squared", reduction: str = "sum", *, offload: bool = False) -> None:
        self.form = form
        self.reduction = reduction
        self.offload = offload
        self.micro_batches: int | None = None
        self._structure: Structure | None = None
        self._layers: dict[str, LayerTaylor] = {}
        self._members: dict[str, list[Member]] = {}
        self._listener: WeightGradients | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Listen to every layer that belongs to a group.

        Raises:
            ValueError: groups are inside stacked experts.
        """
        self.detach()
        base = base_model(model)
        self._structure = structure
        sides: dict[str, dict[str, None]] = {}
        for dimension in structure:
            self._members[dimension.name] = []
            for module, member in _weighted_members(base, dimension.all_members):
                if is_stacked(base_layer(module), member.parameter):
                    raise ValueError(
                        f"The criterion 'taylor' cannot listen to the stacked experts of {member.module} during "
                        "training. Use the criterion 'fisher', or 'taylor' in one shot."
                    )
                self._members[dimension.name].append(member)
                sides.setdefault(member.module, {})[member.axis] = None
        self._layers = {
            name: LayerTaylor(
                base.get_submodule(name),
                tuple(axes),
                self.form,
                at_once=self.micro_batches == 1,
                offload=self.offload,
            )
            for name, axes in sides.items()
        }
        self._listener = WeightGradients(base, structure, {name: layer.add for name, layer in self._layers.items()})

    def scores(self, plan: Plan) -> Scores | None:
        """Return scores from the backward passes since the last call, or None if some group saw none."""
        assert self._structure is not None
        found = {name: layer.take() for name, layer in self._layers.items()}
        scores: Scores = {}
        for dimension in self._structure:
            parts = [
                member.group_sums(of_layer[member.axis], plan.count(dimension.name))
                for member in self._members[dimension.name]
                if (of_layer := found[member.module]) is not None
            ]
            if not parts:
                return None
            scores[dimension.name] = reduced(parts, self.reduction)
        return scores

    def detach(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.remove()
        self._listener = self._structure = None
        self._layers, self._members = {}, {}
