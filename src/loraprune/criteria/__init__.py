"""Criteria by name: what turns evidence into one importance score a group."""

from __future__ import annotations

from loraprune.criteria.criterion import Criterion
from loraprune.criteria.fisher import Fisher
from loraprune.criteria.lora import LORA_FORMS, LoraForm, LoraGuided
from loraprune.criteria.magnitude import Magnitude
from loraprune.criteria.random import Random

__all__ = ["CRITERIA", "LORA_FORMS", "Criterion", "Fisher", "LoraForm", "LoraGuided", "Magnitude", "Random"]

CRITERIA: tuple[str, ...] = ("fisher", "lora", "magnitude", "random")


def make_criterion(name: str, *, lora_form: str = "squared", seed: int = 0) -> Criterion:
    """Build a criterion by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "fisher":
        return Fisher()
    if name == "lora":
        return LoraGuided(lora_form)
    if name == "magnitude":
        return Magnitude()
    if name == "random":
        return Random(seed)
    raise ValueError(f"There is no criterion {name!r}; choose one of {', '.join(CRITERIA)}.")
