"""Criteria by name: what turns evidence into one importance score a group."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from loraprune.importance.baselines import Position, Random
from loraprune.importance.compresso import Compresso, CompressoOptions
from loraprune.importance.criterion import Criterion, CriterionOptions, LearnedCriterion
from loraprune.importance.fisher import Fisher
from loraprune.importance.flap import Flap
from loraprune.importance.lora import LORA_FORMS, LoraForm, LoraGuided
from loraprune.importance.magnitude import Magnitude
from loraprune.importance.reductions import GROUP_REDUCTIONS, GroupReduction
from loraprune.importance.taylor import Taylor
from loraprune.importance.taylor_forms import TAYLOR_FORMS, TaylorForm
from loraprune.importance.wanda import Wanda

__all__ = [
    "CRITERIA",
    "GROUP_REDUCTIONS",
    "LORA_FORMS",
    "TAYLOR_FORMS",
    "Compresso",
    "CompressoOptions",
    "Criterion",
    "CriterionOptions",
    "Fisher",
    "Flap",
    "GroupReduction",
    "LearnedCriterion",
    "LoraForm",
    "LoraGuided",
    "Magnitude",
    "Position",
    "Random",
    "Taylor",
    "TaylorForm",
    "Wanda",
]

_MAKERS: dict[str, Callable[[CriterionOptions], Criterion]] = {
    "fisher": lambda options: Fisher(),
    "lora": lambda options: LoraGuided(options.lora_form, options.group_reduction),
    "taylor": lambda options: Taylor(options.taylor_form, options.group_reduction, offload=options.offload_grads),
    "magnitude": lambda options: Magnitude(options.group_reduction),
    "wanda": lambda options: Wanda(),
    "flap": lambda options: Flap(),
    "random": lambda options: Random(options.seed),
    "position": lambda options: Position(),
    "compresso": lambda options: Compresso(options.compresso, options.seed),
}

CRITERIA: tuple[str, ...] = tuple(_MAKERS)
"""Criteria that score groups; ``pst``, which makes single weights zero, is none of them."""


def make_criterion(options: CriterionOptions) -> Criterion:
    """Build a criterion by its name, or copy that of the user.

    Raises:
        ValueError: there is none of that name.
    """
    if options.own is not None:
        return copy.deepcopy(options.own)
    maker = _MAKERS.get(options.name)
    if maker is None:
        raise ValueError(f"There is no criterion {options.name!r}; choose one of {', '.join(CRITERIA)}.")
    return maker(options)


_NAMES: dict[type, str] = {
    Fisher: "fisher",
    LoraGuided: "lora",
    Taylor: "taylor",
    Magnitude: "magnitude",
    Wanda: "wanda",
    Flap: "flap",
    Random: "random",
    Position: "position",
    Compresso: "compresso",
}


def options_of(criterion: object) -> tuple[str, dict[str, Any]] | None:
    """Name and options of a criterion of ours, as the fields of configurations have them; None of other objects."""
    name = _NAMES.get(type(criterion))
    if name is None:
        return None
    given: Any = criterion
    options = {
        "lora": lambda: {"lora_form": given.form, "group_reduction": given.reduction},
        "taylor": lambda: {
            "taylor_form": given.form,
            "group_reduction": given.reduction,
            "offload_grads": given.offload,
        },
        "magnitude": lambda: {"group_reduction": given.reduction},
        "random": lambda: {"seed": given.seed},
        "compresso": lambda: {"compresso": given.options, "seed": given.seed},
    }
    return name, options[name]() if name in options else {}
