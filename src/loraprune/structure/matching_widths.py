"""Widths that reach a sparsity ratio: combinations of head counts and channel counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from loraprune.structure.dimensions import Structure
from loraprune.structure.widths import LegalWidths, Widths, kept_in, widest

NAMES = {
    "heads": "KV head(s)",
    "query_heads": "query head(s) of each KV head",
    "channels": "channel(s)",
    "experts": "expert(s)",
    "expert_channels": "channel(s) of each expert",
    "shared_channels": "channel(s) of the shared expert",
    "blocks": "block(s)",
    "hidden": "channel(s) of the hidden size",
}


def _kind_parameters(structure: Structure, kind: str, width: int, legal: LegalWidths) -> int:
    """Parameters of a kind that stay when the widest of its dimensions keeps ``width`` groups per stratum."""
    most, multiple = widest(structure, kind), legal.multiples.get(kind, 1)
    return sum(
        dimension.parameters_per_group
        * (
            dimension.num_groups
            if dimension.layer in structure.protected
            else kept_in(dimension, width, most, multiple)
        )
        for dimension in structure.of_kind(kind)
    )


def kept_parameters(structure: Structure, widths: Widths, legal: LegalWidths) -> int:
    """Return the number of prunable parameters of a model with these widths."""
    return sum(_kind_parameters(structure, kind, width, legal) for kind, width in widths.items())


def ratio_of(structure: Structure, widths: Widths, legal: LegalWidths) -> float:
    """Return the share of the prunable parameters that a model with these widths has lost."""
    return 1.0 - kept_parameters(structure, widths, legal) / structure.prunable_parameters


def ratio_of_most_even(structure: Structure, legal: LegalWidths) -> float:
    """Return the ratio of the most even of the given widths: heads and channels lose nearly the same share."""

    def off(widths: Widths) -> float:
        kept = 1.0 - ratio_of(structure, widths, legal)
        return sum(abs(width / widest(structure, kind) - kept) for kind, width in widths.items())

    return max(ratio_of(structure, min(legal.only, key=off), legal), 0.0)


def _step_parameters(structure: Structure, kind: str) -> float:
    """Parameters of one more group per stratum in the widest dimension, and of the same share in the others."""
    most = widest(structure, kind)
    return sum(d.parameters_per_group * d.num_groups / most for d in structure.open if d.kind == kind)


def _filler(structure: Structure, legal: LegalWidths) -> str | None:
    """Fine kind that makes up for the rounding of the others: the one with the most parameters."""
    kinds = [kind for kind in legal.multiples if any(d.kind == kind for d in structure.open)]
    return max(kinds, key=lambda kind: _step_parameters(structure, kind) * widest(structure, kind), default=None)


def tolerance(structure: Structure, legal: LegalWidths) -> float:
    """Return half of the finest step, one channel multiple in every layer, in parameters."""
    filler = _filler(structure, legal)
    if filler is not None:
        return 0.5 * legal.multiples[filler] * _step_parameters(structure, filler) * (1 + 1e-9)
    return 0.5 * min(_step_parameters(structure, kind) for kind in legal.counts) * (1 + 1e-9)


def _beside(
    structure: Structure, coarse: Widths, wanted: float, now: Widths, legal: LegalWidths, least: Widths | None = None
) -> Widths:
    """Legal widths of the fine kinds that together with ``coarse`` come nearest to ``wanted`` parameters.

    All fine kinds keep about the same share; the largest one takes the remainder. ``least`` is a lower bound.
    """
    widths = dict(coarse)
    left = wanted - kept_parameters(structure, coarse, legal)
    fine = [kind for kind in structure.kinds if kind in legal.multiples]
    full = sum(_kind_parameters(structure, kind, widest(structure, kind), legal) for kind in fine)
    filler = _filler(structure, legal)
    for kind in sorted(fine, key=lambda kind: kind == filler):
        multiple = legal.multiples[kind]
        if kind == filler:
            fixed = _kind_parameters(structure, kind, widest(structure, kind), legal)
            fixed_part = fixed - _step_parameters(structure, kind) * widest(structure, kind)
            exact = (left - fixed_part) / _step_parameters(structure, kind)
        else:
            exact = max(left, 0.0) / full * widest(structure, kind)
        width = min(max(round(exact / multiple), 1) * multiple, now[kind])
        widths[kind] = max(width, least[kind]) if least else width
        if kind != filler:
            left -= _kind_parameters(structure, kind, widths[kind], legal)
            full -= _kind_parameters(structure, kind, widest(structure, kind), legal)
    return widths


def _coarse(legal: LegalWidths, now: Widths, least: Widths | None = None) -> list[Widths]:
    """All combinations of legal head counts (and expert counts) between ``least`` and ``now``."""
    kinds = list(legal.counts)
    options = [
        [count for count in legal.counts[kind] if (least[kind] if least else 0) <= count <= now[kind]] or [now[kind]]
        for kind in kinds
    ]
    return [dict(zip(kinds, counts, strict=True)) for counts in product(*options)]


def final_candidates(structure: Structure, now: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Return the legal widths, no larger than ``now``, that reach a ratio.

    These are all that reach it within half a channel multiple; if there are none, those that come nearest. If the
    widths of the final model are given, these are the given ones that can still be reached.
    """
    if legal.only:
        return [widths for widths in legal.only if all(width <= now[kind] for kind, width in widths.items())]
    wanted = (1.0 - ratio) * structure.prunable_parameters
    found = [_beside(structure, coarse, wanted, now, legal) for coarse in _coarse(legal, now)]
    errors = [abs(kept_parameters(structure, widths, legal) - wanted) for widths in found]
    close = [widths for widths, error in zip(found, errors, strict=True) if error <= tolerance(structure, legal)]
    return close or [found[errors.index(min(errors))]]


def step_candidates(structure: Structure, now: Widths, final: Widths, ratio: float, legal: LegalWidths) -> list[Widths]:
    """Return widths on the way from ``now`` to ``final`` that remove at least a ratio, and little more.

    Heads are removed in coarse steps, so widths on the way may remove more than the ratio: removed channels cannot be
    restored.
    """
    wanted = (1.0 - ratio) * structure.prunable_parameters
    found = [_beside(structure, coarse, wanted, now, legal, final) for coarse in _coarse(legal, now, final)]
    far_enough = wanted + tolerance(structure, legal)
    return [widths for widths in found if kept_parameters(structure, widths, legal) <= far_enough] or [final]


def share_of_coarse_groups(structure: Structure, legal: LegalWidths, widths: Widths) -> float:
    """Return kept heads and experts as shares of all, summed over the kinds."""
    return sum(widths[kind] / widest(structure, kind) for kind in legal.counts)


def most_even(structure: Structure, candidates: list[Widths], ratio: float, legal: LegalWidths) -> Widths:
    """Return the candidate whose heads, experts and channels lose most nearly the same share."""
    # The ratio refers to all layers: if some keep everything, the others lose more.
    share = ratio * structure.prunable_parameters / sum(dimension.num_parameters for dimension in structure.open)

    def off(widths: Widths) -> float:
        exact = {kind: max(1.0 - share, 0.0) * widest(structure, kind) for kind in legal.counts}
        return sum(abs(widths[kind] - exact[kind]) / widest(structure, kind) for kind in legal.counts)

    return min(candidates, key=lambda widths: (off(widths), -share_of_coarse_groups(structure, legal, widths)))


def check_widths_meet(structure: Structure, ratio: float, legal: LegalWidths) -> None:
    """Check that legal widths, the same in every layer that may shrink, can reach a ratio.

    Raises:
        ValueError: even the smallest widths keep too much, or the ratio lies between two reachable head counts. The
            message says what can be reached.
    """
    if legal.only:
        return
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    nearest = final_candidates(structure, dense, ratio, legal)[0]
    wanted = (1.0 - ratio) * structure.prunable_parameters
    if abs(kept_parameters(structure, nearest, legal) - wanted) > tolerance(structure, legal):
        smallest = {
            kind: legal.counts[kind][0] if kind in legal.counts else min(legal.multiples[kind], dense[kind])
            for kind in structure.kinds
        }
        most = 1.0 - kept_parameters(structure, smallest, legal) / structure.prunable_parameters
        if ratio < most:
            reached = 1.0 - kept_parameters(structure, nearest, legal) / structure.prunable_parameters
            raise ValueError(
                f"No legal widths reach a ratio of {ratio:g}: one KV head more or less in every layer is more than the "
                f"whole FFN can make up for. The nearest ratio is {reached:.4f}. Choose that one, or another one."
            )
        least = " and ".join(f"{width} {NAMES.get(kind, kind)}" for kind, width in smallest.items())
        if structure.spans_blocks:
            raise ValueError(
                f"A ratio of {ratio:g} removes too much: with at least {least}, at most {most:.4f} of the parameters "
                "can be removed. Choose a smaller ratio."
            )
        raise ValueError(
            f"A ratio of {ratio:g} would empty a dimension: with at least {least} in every layer"
            f"{' that may shrink' if structure.protected else ''}, at most {most:.4f} of the prunable parameters can "
            "be removed. Choose a smaller ratio, or a smaller --channel-multiple."
        )


def widths_within(structure: Structure, legal: LegalWidths, fits: Callable[[Widths], bool]) -> list[Widths]:
    """Return, for each combination of legal head counts, the widest FFN that fits; empty if none does.

    All fine kinds keep about the same share. Choices that are nowhere wider than another one are left out.

    Args:
        structure: structure of the model before pruning.
        legal: widths that may be chosen.
        fits: whether a model with the given widths is small or fast enough; if it is, so are smaller ones.
    """
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    found = []
    for coarse in _coarse(legal, dense):
        choice = next((widths for widths in _narrower(coarse, dense, legal) if fits(widths)), None)
        if choice is not None:
            found.append(choice)
    return [widths for widths in found if not any(_is_wider(other, widths) for other in found)]


def _narrower(coarse: Widths, dense: Widths, legal: LegalWidths) -> Iterator[Widths]:
    """Yield the same heads with fewer and fewer channels, starting with all of them."""
    fine = [kind for kind in dense if kind in legal.multiples]
    steps = max((-(-dense[kind] // legal.multiples[kind]) for kind in fine), default=1)
    yield {**dense, **coarse}
    for left in range(steps - 1, 0, -1):
        yield coarse | {
            kind: max(round(dense[kind] * left / steps / legal.multiples[kind]), 1) * legal.multiples[kind]
            for kind in fine
        }


def _is_wider(one: Widths, other: Widths) -> bool:
    return one != other and all(one[kind] >= width for kind, width in other.items())
