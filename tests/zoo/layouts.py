"""Which rows stand for which layouts: by default the contract is run on these, and on all rows with ``-m zoo``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest
import torch
from tests.zoo.cases import CASES
from tests.zoo.row import Row
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraprune.architectures import spec_for
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Member, PrunableDimension

DEFAULT_ROWS = (
    "llama",
    "llama with biases, tied",
    "qwen2",
    "olmo2",
    "olmo2 with biases",
    "cohere with norms",
    "phi3",
    "stablelm",
    "stablelm with norms",
    "opt",
    "gpt2",
    "gpt_neo",
    "falcon with one KV head",
    "falcon with one KV head and biases, in sequence",
    "bloom",
    "mpt",
    "mixtral",
    "qwen2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "t5",
    "bert",
    "vit",
    "vit without biases",
)
"""Names of rows that have every layout between them."""


def _layer_kind(layer: nn.Module) -> str:
    for kind in (nn.Linear, Conv1D, nn.Embedding):
        if isinstance(layer, kind):
            return kind.__name__
    return "norm" if "Norm" in type(layer).__name__ else "other"


def _side(model: nn.Module, member: Member) -> Hashable:
    """What kind of layer a side is of, and how the groups lie along it."""
    layer = model.get_submodule(member.module)
    has_bias = getattr(layer, "bias", None) is not None
    return (
        _layer_kind(layer),
        member.axis,
        len(member.segments),
        member.parameter == "weight",
        member.stacked,
        has_bias,
    )


def _layout(model: nn.Module, dimension: PrunableDimension) -> Hashable:
    return (
        dimension.kind,
        frozenset(_side(model, member) for member in dimension.members),
        _side(model, dimension.consumer),
        dimension.strata > 1,
        dimension.tied is not None,
        dimension.alibi,
        bool(dimension.numbers),
    )


def layouts_of(row: Row) -> set[Hashable]:
    """Layouts of all dimensions of a row: dimensions with equal ones are cut by the same code in the same way."""
    with torch.device("meta"):
        model = row.auto.from_config(row.config())
    spec = spec_for(row.config())
    kinds = [case.kinds for case in CASES if case.row is row]
    return {
        (_layout(model, dimension), spec.ragged_refusal is None, spec.auto_class)
        for chosen in kinds
        for dimension in describe(model, chosen)
    }


def by_layout(values: Iterable[Any], row_of: Callable[[Any], Row] = lambda value: value) -> list[Any]:
    """Parameters of a test of the contract: rows beyond the default ones are left to the full run."""
    return [
        value
        if row_of(value).name in DEFAULT_ROWS
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in values
    ]
