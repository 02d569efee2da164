"""Which groups stay: a plan, which only ever shrinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraprune.structure.dimensions import Structure


@dataclass(frozen=True)
class Plan:
    """The groups that stay in each prunable dimension, numbered as in the model that was described.

    Attributes:
        kept: name of a dimension to the indices of its groups that stay, ascending, at least one.
    """

    kept: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, groups in self.kept.items():
            if not groups:
                raise ValueError(f"A plan must keep at least one group of every dimension; {name} would be empty.")
            if list(groups) != sorted(set(groups)):
                raise ValueError(f"The groups kept in {name} are not ascending and distinct.")

    @classmethod
    def full(cls, structure: Structure) -> Plan:
        """The plan that keeps everything."""
        return cls({dimension.name: tuple(range(dimension.num_groups)) for dimension in structure})

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[int]]) -> Plan:
        """Read what :meth:`to_json` gave."""
        return cls({name: tuple(int(group) for group in groups) for name, groups in value.items()})

    def to_json(self) -> dict[str, list[int]]:
        """As plain lists."""
        return {name: list(groups) for name, groups in self.kept.items()}

    def check(self, structure: Structure) -> None:
        """Make sure that the plan was made for this structure.

        Raises:
            ValueError: it names other dimensions, or groups that the model does not have.
        """
        names = {dimension.name: dimension.num_groups for dimension in structure}
        if set(names) != set(self.kept):
            odd = sorted(set(names) ^ set(self.kept))[0]
            raise ValueError(f"The plan is for another model: {odd!r} is in only one of the two.")
        for name, groups in self.kept.items():
            if groups[-1] >= names[name]:
                raise ValueError(
                    f"The plan is for another model: it keeps group {groups[-1]} of {name}, "
                    f"which has {names[name]} groups."
                )

    def count(self, name: str) -> int:
        """Groups kept in a dimension."""
        return len(self.kept[name])

    def counts(self, structure: Structure, kind: str) -> tuple[int, ...]:
        """Groups kept in each layer, for one kind of dimension."""
        return tuple(self.count(dimension.name) for dimension in structure.of_kind(kind))

    def is_uniform(self, structure: Structure) -> bool:
        """Whether every layer has the same widths, so that a stock config can say them."""
        return all(len(set(self.counts(structure, kind))) == 1 for kind in structure.kinds)

    def keep(self, positions: Mapping[str, Sequence[int]]) -> Plan:
        """Shrink: of the groups kept so far, keep those at ``positions`` (per dimension; others stay as they are).

        Raises:
            ValueError: a dimension would be emptied.
        """
        kept = dict(self.kept)
        for name, chosen in positions.items():
            kept[name] = tuple(self.kept[name][position] for position in chosen)
        return Plan(kept)

    def positions_in(self, earlier: Plan) -> dict[str, list[int]]:
        """Where this plan's groups stand among those of an earlier, larger plan; only dimensions that shrank.

        Raises:
            ValueError: this plan keeps a group that the earlier one had given up.
        """
        changed: dict[str, list[int]] = {}
        for name, groups in self.kept.items():
            before = earlier.kept[name]
            if groups == before:
                continue
            place = {group: position for position, group in enumerate(before)}
            missing = [group for group in groups if group not in place]
            if missing:
                raise ValueError(f"A plan only shrinks: group {missing[0]} of {name} was already removed.")
            changed[name] = [place[group] for group in groups]
        return changed

    def removed_parameters(self, structure: Structure) -> int:
        """Base parameters that the plan removes."""
        return sum(
            (dimension.num_groups - self.count(dimension.name)) * dimension.parameters_per_group
            for dimension in structure
        )

    def ratio(self, structure: Structure) -> float:
        """Removed parameters as a share of those of the prunable dimensions."""
        return self.removed_parameters(structure) / structure.prunable_parameters
