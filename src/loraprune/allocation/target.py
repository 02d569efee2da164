"""How much of what goes, and how it is spread over the model: what every way to prune groups is asked for."""

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
"""Allocations that need no model to try widths on."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much of what goes, and how it is spread.

    Attributes:
        ratio: sparsity ratio: removed parameters as a share of those of the prunable dimensions, in [0, 1).
        dimensions: kinds of dimensions to prune (``heads``, ``query_heads``, ``channels``, ``expert_channels``,
            ``experts``, ..., or alone ``blocks`` or ``hidden``); None takes the family's default.
        widths: groups that each layer keeps, such as ``heads=3,channels=1120`` (heads are those of keys and values), or
            several choices with ``;`` between them, of which the allocation takes one; kinds that are not named keep
            everything. The ratio then follows from the widths.
        keep_layers: layers that keep all of their groups; negative ones count from the end, and a text such as
            ``"10%"`` is that share of the layers, from the first on. The ratio stays one of all prunable parameters,
            so that the other layers lose more.
        allocation: ``measured`` (one head count and one channel count for all layers; several pairs are cut and
            repaired for trial, and the pair stays with which the predictions change least; before training alone),
            ``balanced`` (one head count and one channel count for all layers, split so that least importance is
            lost), ``uniform`` (heads and channels lose the same share, as in the LoRAPrune paper) or ``global``
            (groups of all layers compete; widths differ from layer to layer, and the result needs our modeling file).
            None is the default of the recipe: ``measured`` where all is cut before training and repaired, else
            ``balanced`` in ``prune`` and ``uniform`` in ``oneshot``.
        channel_multiple: FFN widths are rounded to a multiple of this; None chooses by size.
        head_counts: ``config`` keeps to head counts that the model's own config accepts; with ``any``, the result may
            be exported as the related architecture that accepts them (a Llama as a Mistral).
    """

    ratio: float = setting(
        0.5,
        "share of the prunable parameters to remove, between 0 and 1",
        within="[0, 1)",
        why="the share of prunable weights that goes",
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
            raise ValueError("dimensions is empty, so nothing would be pruned; leave it out for the default.")
        if self.widths is not None:
            parse_widths(self.widths)
            if self.allocation == "global":
                raise ValueError(
                    "widths says what each layer keeps, and with the allocation 'global' layers differ. Leave one out."
                )

    @property
    def legal_head_counts(self) -> HeadCounts:
        """Head counts that may be chosen: our modeling file, which global allocation needs, takes them all."""
        return "any" if self.allocation == "global" else self.head_counts

    def legal_widths(self, structure: Structure) -> LegalWidths:
        """Widths that the result may have.

        Raises:
            ValueError: those that were asked for are none of this model.
        """
        legal = legal_widths(structure, channel_multiple=self.channel_multiple, head_counts=self.legal_head_counts)
        if self.widths is None:
            return legal
        return replace(legal, only=completed_widths(structure, self.widths, legal.counts))
