"""Which measure of quality a comparison of runs uses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from loraprune.report.comparison.qualities import Figure

Figures = Mapping[str, Mapping[str, Figure]]
"""By name of the run and of the measure."""

REMEDY = "Measure all of them alike with `loraprune eval` and name its file with --evaluation."


def quality_names(figures: Figures) -> list[str]:
    """All measures that any run has, in the order met."""
    return list(dict.fromkeys(name for known in figures.values() for name in known))


def named_quality(asked: str, figures: Figures) -> str:
    """The measure that a user means: by its whole name, or by how one name alone begins.

    Raises:
        ValueError: no run has such a measure, or several names begin so.
    """
    known = quality_names(figures)
    if asked in known:
        return asked
    # "wikitext2" means "wikitext2@2048", and "wikitext2:bits_per_byte" what ends alike
    start, _, key = asked.partition(":")
    alike = [name for name in known if name.startswith(start) and name.endswith(f":{key}" if key else "")]
    plain = [name for name in alike if ":" not in name] or alike
    if len(plain) == 1:
        return plain[0]
    near = plain or difflib.get_close_matches(asked, known, n=1)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    raise ValueError(f"No run has a measure {asked!r}.{hint} {_overview(figures)}")


def common_quality(figures: Figures, dense: Figures) -> str:
    """The measure that most runs share under the same conditions.

    Of several, one that the dense model has, too, and the one met first.

    Args:
        figures: of the runs.
        dense: of the models that they began with, as far as these were evaluated.

    Raises:
        ValueError: several runs have no measure in common, or a single one has none.
    """
    names = quality_names(figures)
    shared = {name: [known[name] for known in figures.values() if name in known] for name in names}
    if not names:
        raise ValueError(f"Nothing is known of the quality of {', '.join(figures)}. {REMEDY}")

    def rank(name: str) -> tuple[int, int, bool]:
        beside_dense = shared[name][0].anchor is not None or any(name in known for known in dense.values())
        return _largest_group(shared[name]), len(shared[name]), beside_dense

    best = max(names, key=rank)
    if len(figures) > 1 and len(shared[best]) == 1:
        raise ValueError(f"The runs have no measure of quality in common. {_overview(figures)} {REMEDY}")
    return best


def without(figures: Figures, name: str) -> list[str]:
    """A sentence about each run that lacks a measure."""
    return [
        f"{run} is left out: it has no {name} ({', '.join(known) or 'no measure at all'})."
        for run, known in figures.items()
        if name not in known
    ]


def _largest_group(figures: Sequence[Figure]) -> int:
    return max(sum(figure.compares_with(other) for other in figures) for figure in figures)


def _overview(figures: Figures) -> str:
    lists = {run: ", ".join(known) or "none" for run, known in figures.items()}
    if len(set(lists.values())) == 1:
        return f"There is {next(iter(lists.values()))}."
    return " ".join(f"{run} has {listed}." for run, listed in lists.items())
