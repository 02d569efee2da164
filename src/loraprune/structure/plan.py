"""Plan: the groups that stay in a model. A plan can only shrink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraprune.options.field import check_choice
from loraprune.structure.dimensions import PrunableDimension, Structure
from loraprune.structure.matching_widths import check_widths_meet, final_candidates, most_even
from loraprune.structure.widths import HEAD_COUNTS, HeadCounts, check_ratio, kept_in, legal_widths, widest


def _first_groups(structure: Structure, dimension: PrunableDimension, count: int) -> tuple[int, ...]:
    """The first ``count`` groups of a dimension; all groups in a protected layer, and protected blocks first."""
    if dimension.layer in structure.protected:
        return tuple(range(dimension.num_groups))
    if dimension.spans_blocks and structure.protected:
        first = sorted(structure.protected) + [n for n in range(dimension.num_groups) if n not in structure.protected]
        return tuple(sorted(first[:count]))
    each, kept = dimension.per_stratum, count // dimension.strata
    step = each // kept if dimension.alibi else 1
    inside = range(step - 1, each, step) if dimension.alibi else range(kept)
    return tuple(stratum * each + group for stratum in range(dimension.strata) for group in inside)


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
                raise ValueError(f"A plan must keep at least one group of every dimension, but {name} would be empty.")
            if list(groups) != sorted(set(groups)):
                raise ValueError(f"The groups kept in {name} are not ascending and distinct.")

    @classmethod
    def full(cls, structure: Structure) -> Plan:
        """Return the plan that keeps everything."""
        return cls({dimension.name: tuple(range(dimension.num_groups)) for dimension in structure})

    @classmethod
    def uniform(
        cls,
        structure: Structure,
        ratio: float,
        *,
        channel_multiple: int | None = None,
        head_counts: HeadCounts = "config",
    ) -> Plan:
        """Return a plan that removes a share of the prunable parameters, about the same share of every dimension.

        It keeps the first groups of each dimension (or of each stratum), whatever their importance;
        :func:`loraprune.plan_for` chooses them by scores.

        Args:
            structure: structure from :func:`loraprune.describe`.
            ratio: share of the prunable parameters to remove, in [0, 1). Widths are legal ones, so the result is
                within half of the finest step of the ratio.
            channel_multiple: multiple that FFN widths are rounded to; None chooses by size.
            head_counts: ``config`` allows only head counts that the model's own config accepts, ``any`` allows all.

        Raises:
            ValueError: no legal widths reach the ratio; the message says what can be reached.
        """
        check_ratio(ratio)
        check_choice("head_counts", head_counts, HEAD_COUNTS)
        legal = legal_widths(structure, channel_multiple=channel_multiple, head_counts=head_counts)
        if ratio == 0.0:
            return cls.full(structure)
        check_widths_meet(structure, ratio, legal)
        dense = {kind: widest(structure, kind) for kind in structure.kinds}
        widths = most_even(structure, final_candidates(structure, dense, ratio, legal), ratio, legal)
        kept = {}
        for dimension in structure:
            kind = dimension.kind
            count = kept_in(dimension, widths[kind], dense[kind], legal.multiples.get(kind, 1))
            kept[dimension.name] = _first_groups(structure, dimension, count)
        return cls(kept)

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[int]]) -> Plan:
        """Read the result of :meth:`to_json`."""
        return cls({name: tuple(int(group) for group in groups) for name, groups in value.items()})

    def to_json(self) -> dict[str, list[int]]:
        """Return the plan as plain lists."""
        return {name: list(groups) for name, groups in self.kept.items()}

    def check(self, structure: Structure) -> None:
        """Check that the plan was made for this structure.

        Raises:
            ValueError: the plan names other dimensions or groups than the model has, or the model could not run with
                it: strata keep different numbers of groups or too few, or tied dimensions keep different groups.
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
        for dimension in structure:
            self._check_dimension(structure, dimension)

    def _check_dimension(self, structure: Structure, dimension: PrunableDimension) -> None:
        """Check that the model still runs after this cut of a dimension."""
        kept = self.kept[dimension.name]
        if len(kept) == dimension.num_groups:
            return
        strata = Counter(group // dimension.per_stratum for group in kept)
        if len(strata) < dimension.strata or len(set(strata.values())) > 1:
            raise ValueError(
                f"The plan keeps {len(kept)} groups of {dimension.name}, not equally many in each of its "
                f"{dimension.strata} strata of {dimension.per_stratum}."
            )
        width = len(kept) // dimension.strata
        if width < dimension.floor:
            raise ValueError(
                f"The plan keeps {width} groups of {dimension.name}. At least {dimension.floor} must stay."
            )
        if width % dimension.multiple:
            raise ValueError(
                f"The plan keeps {width} groups of {dimension.name}. Their number must be a multiple of "
                f"{dimension.multiple}."
            )
        if dimension.alibi and kept != _first_groups(structure, dimension, len(kept)):
            raise ValueError(
                f"Only every second, fourth, ... group of {dimension.name} can stay, because its biases are fixed."
            )
        for other in structure:
            if dimension.tied and other.tied == dimension.tied and self.kept[other.name] != kept:
                raise ValueError(
                    f"{dimension.name} and {other.name} are cut together, but the plan keeps different groups of them."
                )

    def count(self, name: str) -> int:
        """Return the number of groups kept in a dimension."""
        return len(self.kept[name])

    def counts(self, structure: Structure, kind: str) -> tuple[int, ...]:
        """Return the number of groups kept in each layer, for one kind of dimension."""
        return tuple(self.count(dimension.name) for dimension in structure.of_kind(kind))

    def is_uniform(self, structure: Structure) -> bool:
        """Whether every layer has the same widths, which a stock config can express."""
        return all(len(set(self.counts(structure, kind))) == 1 for kind in structure.kinds)

    def keep(self, positions: Mapping[str, Sequence[int]]) -> Plan:
        """Keep the groups at ``positions`` of those kept so far, per dimension; other dimensions do not change.

        Raises:
            ValueError: a dimension would be emptied.
        """
        kept = dict(self.kept)
        for name, chosen in positions.items():
            kept[name] = tuple(self.kept[name][position] for position in chosen)
        return Plan(kept)

    def positions_in(self, earlier: Plan) -> dict[str, list[int]]:
        """Return the positions of this plan's groups in an earlier, larger plan, for dimensions that shrank.

        Raises:
            ValueError: this plan keeps a group that the earlier one removed.
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
        """Return the number of base parameters that the plan removes."""
        return sum(
            (dimension.num_groups - self.count(dimension.name)) * dimension.parameters_per_group
            for dimension in structure
        )

    def ratio(self, structure: Structure) -> float:
        """Return the removed parameters as a share of those of the prunable dimensions."""
        return self.removed_parameters(structure) / structure.prunable_parameters
