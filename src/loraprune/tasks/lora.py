"""The adapter of a run: peft's LoraConfig built from a few options."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from loraprune.layers.axes import is_stacked, is_transposed
from loraprune.layers.unwrap import base_layer
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.tasks.options import LoraOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from loraprune.tasks.task import Task


def lora_config(
    options: LoraOptions, structure: Structure, model: PreTrainedModel, task: Task, *, every_group: bool = False
) -> LoraConfig:
    """Build peft's configuration.

    Args:
        options: our options.
        structure: structure of the model.
        model: the model itself, or its shapes on the meta device.
        task: task of the model.
        every_group: whether every group needs an adapted layer, as the criterion ``lora`` requires.

    Raises:
        ValueError: a named layer is not in the model's blocks (the message lists the layers), or a group that needs an
            adapted layer has none.
    """
    from peft import LoraConfig

    rank = default_rank(structure.hidden_size) if options.r is None else options.r
    check_rank(rank, model)
    layers = adaptable_layers(structure, model)
    present = sorted({_last(layer) for layer in layers})
    wanted = list(options.target_modules) if options.target_modules else present
    unknown = [name for name in wanted if not any(_ends_with(layer, name) for layer in layers)]
    if unknown:
        raise ValueError(f"LoRA cannot adapt {', '.join(unknown)}: the layers of the blocks are {', '.join(present)}.")
    chosen = {layer for layer in layers if any(_ends_with(layer, name) for name in wanted)}
    experts = _expert_parameters(structure, model) if options.experts else []
    if options.experts and not experts:
        raise ValueError(f"A {structure.spec.model_type} model has no stacked experts that belong to groups.")
    if not chosen and not experts:
        raise ValueError(
            "LoRA has nothing to adapt: the groups of this model have no linear layers. Adapt the experts too "
            "(LoraOptions(experts=True))."
        )
    if every_group:
        _check_every_group(structure, chosen, options.experts)
    renamed = renamed_layers(chosen, model)
    if renamed and options.dropout > 0.0:
        names = ", ".join(sorted({_last(name) for name in renamed}))
        raise ValueError(
            f"In a {structure.spec.model_type} model {names} can only be adapted without dropout. Set the dropout of "
            "LoRA to 0."
        )
    parameters = experts + sorted({f"{_without_block(name)}.weight" for name in renamed})
    chosen -= renamed
    wanted = [name for name in wanted if any(_ends_with(layer, name) for layer in chosen)]
    further: dict[str, Any] = {"target_parameters": parameters} if parameters else {}
    if task.trains_head:
        further["modules_to_save"] = head_modules(model) or None
    return LoraConfig(
        r=rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=target_modules(wanted, chosen, [name for name, _ in model.named_modules()]) if chosen else [],
        fan_in_fan_out=any(is_transposed(model.get_submodule(layer)) for layer in chosen),
        task_type=task.adapter_type,
        **further,
    )


def default_rank(hidden_size: int) -> int:
    """Return the power of two nearest below a quarter of the hidden size, from 8 to 64.

    Rank 8 of the LoRAPrune paper is too small for what a pruned model has to relearn (docs/results.md).
    """
    return min(64, max(8, 1 << max(hidden_size // 4, 1).bit_length() - 1))


def check_rank(rank: int, shapes: nn.Module) -> None:
    """Check that a rank is not absurdly large. A rank above the widest layer has no use and may not fit in memory.

    Raises:
        ValueError: the rank is above the widest layer.
    """
    widest = max((max(weight.shape) for weight in shapes.parameters() if weight.dim() > 1), default=0)
    if rank > widest:
        raise ValueError(f"lora_r is {rank}, and the widest layer has {widest} channels. Choose a smaller rank.")


def _check_every_group(structure: Structure, chosen: Collection[str], experts: bool) -> None:
    for dimension in structure:
        if dimension.spans_blocks:
            continue  # every block has a part of this dimension
        if dimension.of_experts and not experts:
            raise ValueError(
                f"The criterion 'lora' needs LoRA on a layer of every group, and {dimension.name} has none. Adapt the "
                "experts too (LoraOptions(experts=True)), or use the criterion 'fisher'."
            )
        if not dimension.of_experts and not any(member.module in chosen for member in dimension.all_members):
            raise ValueError(
                f"The criterion 'lora' needs LoRA on a layer of every group, and {dimension.name} has none. Adapt more "
                "layers (--lora-target-modules), or use the criterion 'fisher'."
            )


def adaptable_layers(structure: Structure, model: PreTrainedModel) -> set[str]:
    """Return the names of the linear layers that belong to a group, including groups of kinds that are not pruned.

    Routers and stacked experts are left out.
    """
    described = [structure, *(describe(model, [kind]) for kind in structure.left_out)]
    members = {
        member.module
        for part in described
        for dimension in part
        if not dimension.spans_blocks
        for member in dimension.all_members
        if not member.stacked and member.axis != "experts"
    }
    layers: dict[str, nn.Module] = {name: base_layer(model.get_submodule(name)) for name in members}
    return {name for name, layer in layers.items() if isinstance(layer, nn.Linear) or is_transposed(layer)}


def _expert_parameters(structure: Structure, model: nn.Module) -> list[str]:
    """Return the parameters of stacked experts that belong to a group, without the block's part of the name."""
    found = {
        f"{member.module}.{member.parameter}"
        for dimension in structure
        for member in dimension.all_members
        if is_stacked(base_layer(model.get_submodule(member.module)), member.parameter)
    }
    return sorted({_without_block(name) for name in found})


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the modules after the blocks, such as a classifier's own layers."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def target_modules(wanted: Sequence[str], chosen: Collection[str], names: Collection[str]) -> list[str] | str:
    """Return the ``target_modules`` with which peft adapts the layers ``chosen`` and no others.

    Args:
        wanted: endings of layer names.
        chosen: full names of the layers to adapt.
        names: names of all modules of the model.

    Returns:
        The short names if they match only these layers, else a regular expression of the full names. (peft would
        shorten a list of full names and then not find the layers when a run is resumed.)
    """
    if {name for name in names if any(_ends_with(name, short) for short in wanted)} == set(chosen):
        return list(wanted)
    by_place = sorted({re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(name)) for name in chosen})
    pattern = "|".join(by_place)
    if {name for name in names if re.fullmatch(pattern, name)} == set(chosen):
        return pattern
    return "|".join(re.escape(name) for name in sorted(chosen))


def _without_block(name: str) -> str:
    """Return the part of a name below its block."""
    return re.split(r"\.\d+\.", name)[-1]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


# Linear layers that peft would mistake for experts because of their names.

EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")


def renamed_layers(layers: Collection[str], model: PreTrainedModel) -> set[str]:
    """Find the layers that peft does not adapt when ``target_modules`` of a ``LoraConfig`` names them.

    In older versions of transformers, each expert was a module of linear layers; today, one parameter stacks their
    weights. In every mixture of experts, peft applies the old names to the new parameters, even if dense or shared FFNs
    have layers of those names. ``NAME.weight`` in ``target_parameters`` selects these layers.

    Args:
        layers: full names of linear layers.
        model: model of the layers.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_config_for_transformers,
            get_model_conversion_mapping,
        )
    except ImportError:  # a version of peft without this conversion
        return set()
    names = {layer.rpartition(".")[2] for layer in layers}
    probe = LoraConfig(target_modules=sorted(names.union(EXPERT_NAMES)))
    convert_peft_config_for_transformers(probe, model=model, conversions=get_model_conversion_mapping(model))
    left = set(probe.target_modules or ())
    return {layer for layer in layers if layer.rpartition(".")[2] not in left}
