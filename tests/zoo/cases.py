"""What the contract is checked on: each row of the zoo with its default kinds, and with each of its others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tests.zoo import ROWS, Row
from tests.zoo.plans import ragged_plan, uniform_plan
from tests.zoo.row import adapted
from torch import nn

from loraprune.architectures import spec_for
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.kinds import EXCLUSIVE
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

PLANS = {"uniform": uniform_plan, "ragged": ragged_plan}


@dataclass(frozen=True)
class Case:
    """A row and the kinds that are pruned; None are the defaults.

    The models are made once for the tests that follow each other, so that no test may change them.
    """

    row: Row
    kinds: tuple[str, ...] | None

    def __str__(self) -> str:
        return self.row.name if self.kinds is None else f"{self.row.name}: {', '.join(self.kinds)}"

    @cached_property
    def structure(self) -> Structure:
        return describe(self.dense(), self.kinds)

    @property
    def plan_names(self) -> tuple[str, ...]:
        """Equal widths, and different widths where the family can have them."""
        return ("uniform",) if spec_for(self.row.config()).ragged_refusal else ("uniform", "ragged")

    def plan(self, name: str) -> Plan:
        return PLANS[name](self.structure)

    def is_stock(self, plan: Plan) -> bool:
        """Whether the stock config can say the widths of a plan."""
        widths: dict[str, set[int]] = {}
        for dimension in self.structure:
            widths.setdefault(dimension.kind, set()).add(plan.count(dimension.name) // dimension.strata)
        return set(widths) <= set(self.row.stock) and all(len(found) == 1 for found in widths.values())

    def dense(self, *, lora: bool = False, attention: str = "eager") -> nn.Module:
        """The model, with or without an adapter on every layer of every group."""
        return _dense(self, lora, attention)

    def sliced(self, plan_name: str, *, lora: bool = False, attention: str = "eager") -> nn.Module:
        """The same, cut to a plan."""
        return _sliced(self, plan_name, lora, attention)

    def pairs(self, *, lora: bool = False, attention: str = "eager") -> Iterator[tuple[Plan, nn.Module, nn.Module]]:
        """Every plan with the dense model and the sliced one."""
        for name in self.plan_names:
            yield (
                self.plan(name),
                self.dense(lora=lora, attention=attention),
                self.sliced(name, lora=lora, attention=attention),
            )


@lru_cache(maxsize=8)
def _dense(case: Case, lora: bool, attention: str) -> nn.Module:
    model = case.row.model(attention=attention)
    return adapted(model, case.structure) if lora else model


@lru_cache(maxsize=8)
def _sliced(case: Case, plan_name: str, lora: bool, attention: str) -> nn.Module:
    sliced = copy.deepcopy(_dense(case, lora, attention))
    cut_(sliced, case.structure, case.plan(plan_name))
    return sliced


def cut_(model: nn.Module, structure: Structure, plan: Plan) -> None:
    """Cut a dense model to a plan."""
    slice_(model, structure, Plan.full(structure), plan)


def _with(row: Row, kind: str) -> tuple[str, ...]:
    """The default kinds and one more, without what overlaps with it."""
    overlapping = {other for pair in EXCLUSIVE if kind in pair for other in pair}
    return (*(found for found in row.kinds if found not in overlapping), kind)


CASES = tuple(Case(row, kinds) for row in ROWS for kinds in (None, *(_with(row, kind) for kind in row.others)))
