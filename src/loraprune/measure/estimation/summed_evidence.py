"""Bytes that criteria sum over the processes of a run at each training step, per process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraprune.importance.configs import AtConsumers, Fisher, Taylor
from loraprune.importance.taylor_forms import ADDITIVE
from loraprune.layers.axes import is_matrix, matrix_shape
from loraprune.layers.unwrap import base_layer

if TYPE_CHECKING:
    from loraprune.importance.criterion_config import CriterionConfig
    from loraprune.structure.dimensions import Structure

_SINGLE, _DOUBLE = 4, 8


def evidence_bytes(criterion: CriterionConfig, model: Any, structure: Structure) -> int:
    """Return the bytes that one process adds to the sums of a step.

    ``fisher`` sums squared gate gradients and counts of sequences. ``taylor`` sums whole gradients of weights in 32
    bits, or, for the forms ``second`` and ``vectorize``, their sums along one side. ``wanda`` and ``flap`` sum features
    and their squares in 64 bits. ``lora`` reads gradients that are averaged anyway; others use no data.

    Args:
        criterion: criterion that scores during training.
        model: without an adapter; shapes are enough.
        structure: its description.
    """
    if isinstance(criterion, Fisher):
        return sum((dimension.num_groups + 1) * _SINGLE for dimension in structure)
    if isinstance(criterion, Taylor):
        return _of_gradients(criterion, model, structure)
    if isinstance(criterion, AtConsumers):
        inputs = {d.consumer.module: matrix_shape(base_layer(model.get_submodule(d.consumer.module)))[1]
                  for d in structure if not d.of_experts}  # fmt: skip
        return sum((2 * features + 1) * _DOUBLE for features in inputs.values())
    return 0


def _of_gradients(criterion: Taylor, model: Any, structure: Structure) -> int:
    axes: dict[str, set[str]] = {}
    for dimension in structure:
        for member in dimension.all_members:
            axes.setdefault(member.module, set()).add(member.axis)
    total = 0
    for name, sides in axes.items():
        module = model.get_submodule(name)
        if not is_matrix(module):
            continue
        outputs, inputs = matrix_shape(base_layer(module))
        if criterion.form in ADDITIVE:
            total += sum(outputs if side == "output" else inputs for side in sides) * _SINGLE
        else:
            total += outputs * inputs * _SINGLE * (2 if criterion.form == "mix" else 1)
    return total
