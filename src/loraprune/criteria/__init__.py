"""Criteria as objects: those of the package, and the protocol that one of your own fulfils."""

from __future__ import annotations

from loraprune.importance.baselines import Position, Random
from loraprune.importance.compresso import Compresso, CompressoOptions
from loraprune.importance.criterion import Criterion, LearnedCriterion
from loraprune.importance.fisher import Fisher
from loraprune.importance.flap import Flap
from loraprune.importance.lora import LoraGuided
from loraprune.importance.magnitude import Magnitude
from loraprune.importance.taylor import Taylor
from loraprune.importance.wanda import Wanda

__all__ = [
    "Compresso",
    "CompressoOptions",
    "Criterion",
    "Fisher",
    "Flap",
    "LearnedCriterion",
    "LoraGuided",
    "Magnitude",
    "Position",
    "Random",
    "Taylor",
    "Wanda",
]
