"""Importance from the gradients of the weights themselves: the vanilla criterion, and LLM-Pruner's."""

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
from loraprune.layers.unwrap import base_layer, base_model

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
    """The base weight of a member as it is stored."""
    return getattr(base_layer(module), member.parameter)


@contextmanager
def base_gradients(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Let backward passes leave gradients in exactly the weights that :func:`taylor_scores` reads.

    No other parameter gets one meanwhile: embeddings, head and adapters would only take memory. Afterwards every
    parameter requires gradients as it did before, and the weights have none. Gradients that the weights had before
    are dropped, lest they be added to.

    Raises:
        ValueError: a weight cannot have a gradient, since it is quantized.
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
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in weights)
        for weight in weights.values():
            weight.grad = None
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for weight in weights.values():
            weight.grad = None


def _gradient(module: nn.Module, member: Member) -> torch.Tensor:
    """Gradient of a member's base weight as (out, in) or, of stacked experts, (experts, out, in): a view."""
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
    """Sum of the importance of the weights that one layer gives to each group, shape ``(num_groups,)``.

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
    """Importance of all weights of all layers of each group, from the gradients that the base weights have now.

    ``W`` is the effective weight ``W + s·B·A``, and its gradient is that of the base weight, adapter or not.

    Args:
        model: after one or several backward passes inside :func:`base_gradients`.
        structure: of the model before any pruning.
        plan: what the model is at.
        form: ``squared`` or ``first``.
        reduction: of the layers of a group: see :func:`loraprune.importance.reductions.reduced`.

    Returns:
        One score a group, float32, by name of the dimension.

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
    """Importance from the exact gradient of every weight of a group, while the model is trained or without training.

    It costs a product a layer in the backward pass, of the size of the layer's own. Whether it costs memory depends on
    the form and on the step: ``second`` and ``vectorize`` add up over micro-batches, and all forms are summed up at
    once where a step has one micro-batch; else a gradient of every layer waits for the end of the step, on the layer's
    device or in the machine's memory.

    Args:
        form: see :func:`loraprune.importance.taylor_forms.importance`. For ``vectorize`` the sum is over one row (of a
            consumer: one column) of the weight, and the absolute values of a group's rows are added.
        reduction: of the layers of a group: see :func:`loraprune.importance.reductions.reduced`.
        offload: gradients that wait do so in the machine's memory.

    Attributes:
        micro_batches: backward passes in a step, or None where that is not known.

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
        """Listen to every layer that has a part in a group.

        Raises:
            ValueError: groups lie in stacked experts.
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
                        f"The criterion 'taylor' cannot listen to the stacked experts of {member.module} in training. "
                        "Use the criterion 'fisher', or 'taylor' in one shot."
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
        """Scores from the backward passes since the last call; None where some group saw none."""
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
        """Stop to listen."""
        if self._listener is not None:
            self._listener.remove()
        self._listener = self._structure = None
        self._layers, self._members = {}, {}
