"""Target of a cut: what to prune, how much, and how to distribute it over the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from loraprune.options.field import check_fields, setting
from loraprune.structure.given_widths import completed_widths, parse_widths
from loraprune.structure.widths import HEAD_COUNTS, HeadCounts, LegalWidths, legal_widths

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

Allocation = Literal["measured", "balanced", "uniform", "global"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
BY_SCORES = tuple(name for name in ALLOCATIONS if name != "measured")
"""Allocations that do not try widths on a model."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to prune, how much, and how to distribute it.

    Attributes:
        ratio: sparsity ratio: removed parameters as a share of those of the prunable dimensions, in [0, 1).
        dimensions: kinds of dimensions to prune (``heads``, ``query_heads``, ``channels``, ``expert_channels``,
            ``experts``, ..., or ``blocks`` or ``hidden`` alone); None takes the default of the family.
        widths: groups that each layer keeps, such as ``heads=3,channels=1120`` (KV heads), or several choices separated
            by ``;``, one of which the allocation takes. Kinds that are not named keep everything. The ratio then
            follows from the widths.
        keep_layers: layers that keep all of their groups. Negative numbers count from the end, and a text such as
            ``"10%"`` is that share of the layers, from the first on. The ratio still refers to all prunable
            parameters, so the other layers lose more.
        allocation: ``measured`` (one head count and one channel count for all layers; several pairs are cut and
            repaired on trial, and the pair that changes the predictions least is kept; only before training),
            ``balanced`` (one head count and one channel count for all layers, split to lose the least
            importance), ``uniform`` (heads and channels lose the same share, as in the LoRAPrune paper) or ``global``
            (groups of all layers compete; widths differ from layer to layer, and the result needs our modeling file).
            None takes the default of the recipe: ``measured`` if everything is cut before training and repaired,
            otherwise ``balanced`` in ``prune`` and ``uniform`` in ``oneshot``.
        channel_multiple: multiple that FFN widths are rounded to; None chooses by size.
        head_counts: ``config`` allows only head counts that the model's own config accepts; with ``any``, the result
            may be exported as the related architecture that accepts them (a Llama as a Mistral).
    """

    ratio: float = setting(
        0.5,
        "share of the prunable parameters to remove, between 0 and 1",
        within="[0, 1)",
        why="the share of prunable weights to remove",
    )
    allocation: str | None = setting(
        None,
        "how to divide the cut: measured tries widths on calibration data, balanced follows importance, uniform "
        "takes equal shares, global lets layers differ",
        choices=ALLOCATIONS,
    )
    widths: str | None = setting(
        None, "widths to keep in each layer, such as heads=3,channels=1120 (KV heads); separate alternatives with ';'"
    )
    dimensions: tuple[str, ...] | None = setting(
        None,
        "kinds of structure to prune, such as query_heads,channels, or blocks, or hidden (the hidden size)",
        shown="by model family; loraprune inspect lists them",
    )
    keep_layers: tuple[int | str, ...] = setting(
        (), "layers to leave unpruned, such as 0-3,-1, or 10% for the first tenth", shown="none"
    )
    channel_multiple: int | None = setting(
        None, "multiple that FFN widths are rounded to", within="[1, inf)", shown="by size"
    )
    head_counts: HeadCounts = setting(
        "config",
        "head counts to allow: those that the model's config accepts, or any, which may save a Llama as a Mistral",
        choices=HEAD_COUNTS,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dimensions == ():
            raise ValueError("dimensions is empty, so nothing would be pruned. Omit it for the default.")
        if self.widths is not None:
            parse_widths(self.widths)
            if self.allocation == "global":
                raise ValueError(
                    "widths fixes what each layer keeps, but the allocation 'global' lets layers differ. Omit one."
                )

    @property
    def legal_head_counts(self) -> HeadCounts:
        """Head counts that may be chosen: global allocation needs our modeling file, which accepts any."""
        return "any" if self.allocation == "global" else self.head_counts

    def legal_widths(self, structure: Structure) -> LegalWidths:
        """Return the widths that the result may have.

        Raises:
            ValueError: the requested widths do not exist in this model.
        """
        legal = legal_widths(structure, channel_multiple=self.channel_multiple, head_counts=self.legal_head_counts)
        if self.widths is None:
            return legal
        return replace(legal, only=completed_widths(structure, self.widths, legal.counts))
