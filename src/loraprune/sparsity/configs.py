"""The methods that make single weights zero, as configurations: one class each, which checks its own options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal, get_args

from loraprune.options.field import check_fields, setting

Order = Literal["sequential", "iterative"]
ORDERS: tuple[str, ...] = get_args(Order)
Within = Literal["row", "matrix"]
WITHIN: tuple[str, ...] = get_args(Within)


class Evidence(Enum):
    """What a method looks at beside the weights."""

    NOTHING = "nothing"
    NORMS = "norms of the input features"
    MOMENT = "the second moment of the inputs"


@dataclass(frozen=True)
class ZeroingMethod:
    """Base of the methods.

    Attributes:
        name: in recipes, on the command line and in records.
        evidence: what it looks at beside the weights.
    """

    name: ClassVar[str] = ""
    evidence: ClassVar[Evidence] = Evidence.MOMENT

    def __post_init__(self) -> None:
        check_fields(self)

    def compared_weights(self, rows: int, width: int) -> int:
        """How many weights of a matrix ``(rows, width)`` are compared with each other, where the pattern is free."""
        raise NotImplementedError


@dataclass(frozen=True)
class WholeMask(ZeroingMethod):
    """Base of the masks that are chosen at once, without updates of the weights that stay.

    Attributes:
        within: what weights are compared with, ``row`` or ``matrix``; None is the method's own.
    """

    usual: ClassVar[str] = "row"
    within: str | None = setting(
        None,
        "criteria wanda and magnitude: compare weights within a row or a matrix",
        choices=WITHIN,
        shown="wanda: row, magnitude: matrix",
    )

    @property
    def compared_within(self) -> str:
        """What weights are compared with."""
        return self.within or self.usual

    def compared_weights(self, rows: int, width: int) -> int:
        """All weights of a row, or of the matrix."""
        return width if self.compared_within == "row" else rows * width


@dataclass(frozen=True)
class MagnitudeMask(WholeMask):
    """The smallest weights of a matrix become zero."""

    name = "magnitude"
    evidence = Evidence.NOTHING
    usual = "matrix"


@dataclass(frozen=True)
class WandaMask(WholeMask):
    """Of each row, the weights with the smallest ``|W_ij|·‖X_j‖₂`` become zero (arXiv 2306.11695, Eq. 1).

    Attributes:
        variant: rows lose the same share of their scores instead of the same number of weights.
    """

    name = "wanda"
    evidence = Evidence.NORMS
    variant: bool = setting(False, "criterion wanda: remove the same share of the scores of each row")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant and self.within is not None:
            raise ValueError("within is an option of wanda and magnitude masks that are chosen at once. Leave it out.")

    def compared_weights(self, rows: int, width: int) -> int:
        """All weights of a row, or of the matrix; of the variant, whose rows lose different numbers, of the matrix."""
        return rows * width if self.variant else super().compared_weights(rows, width)


@dataclass(frozen=True)
class WithUpdates(ZeroingMethod):
    """Base of the methods that make up for what becomes zero in the columns that come later (arXiv 2301.00774).

    Attributes:
        damping: as a share of the mean diagonal of the second moment.
        block_size: columns that are compared with each other, and updated together.
    """

    damping: float = setting(0.01, "ridge of sparsegpt, wanda+obs and magnitude+obs", within="[0, 1)", idle=True)
    block_size: int = setting(128, "columns that sparsegpt compares and updates together", within="[1, inf)")

    def compared_weights(self, rows: int, width: int) -> int:
        """Those of a block of columns."""
        return rows * min(width, self.block_size)


@dataclass(frozen=True)
class SparseGpt(WithUpdates):
    """Weights of a block of columns are compared by what their loss costs, with updates of the others."""

    name = "sparsegpt"


@dataclass(frozen=True)
class MaskWithUpdates(WithUpdates):
    """Base of the masks of magnitude and Wanda with SparseGPT's updates.

    Attributes:
        order: ``sequential`` chooses all at once, before any update; ``iterative`` block by block of columns, on the
            weights as they are by then.
        within: of the order ``sequential``: see :class:`WholeMask`.
    """

    mask: ClassVar[type[WholeMask]] = WholeMask
    order: str = setting(
        "sequential",
        "criteria wanda+obs and magnitude+obs: choose weights before any update, or block by block",
        choices=ORDERS,
    )
    within: str | None = setting(None, choices=WITHIN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within is not None and self.order == "iterative":
            raise ValueError("within is an option of wanda and magnitude masks that are chosen at once. Leave it out.")

    def compared_weights(self, rows: int, width: int) -> int:
        """Those of the mask; of the order ``iterative``, those of a block of columns."""
        if self.order == "iterative":
            return super().compared_weights(rows, width)
        return self.mask(self.within).compared_weights(rows, width)


@dataclass(frozen=True)
class MagnitudeWithUpdates(MaskWithUpdates):
    """The mask of magnitude, with SparseGPT's updates."""

    name = "magnitude+obs"
    mask = MagnitudeMask


@dataclass(frozen=True)
class WandaWithUpdates(MaskWithUpdates):
    """The mask of Wanda, with SparseGPT's updates."""

    name = "wanda+obs"
    mask = WandaMask


ZEROING_METHODS: dict[str, type[ZeroingMethod]] = {
    kind.name: kind for kind in (SparseGpt, WandaMask, MagnitudeMask, WandaWithUpdates, MagnitudeWithUpdates)
}
"""Methods by name."""
