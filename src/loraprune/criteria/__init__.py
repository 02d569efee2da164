"""Criteria as objects: those of the package, and the protocol for your own."""

from __future__ import annotations

from loraprune.importance.configs import (
    Compresso,
    Fisher,
    Flap,
    LoraGuided,
    Magnitude,
    Osscar,
    Position,
    Pst,
    Random,
    Taylor,
    Wanda,
)
from loraprune.importance.criterion import Criterion, LearnedCriterion

CompressoOptions = Compresso
"""The old name."""

__all__ = [
    "Compresso",
    "CompressoOptions",
    "Criterion",
    "Fisher",
    "Flap",
    "LearnedCriterion",
    "LoraGuided",
    "Magnitude",
    "Osscar",
    "Position",
    "Pst",
    "Random",
    "Taylor",
    "Wanda",
]
