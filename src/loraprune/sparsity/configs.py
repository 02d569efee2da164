"""Configurations of the methods that zero single weights: one class each, which checks its own options."""

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
    """Evidence that a method needs besides the weights."""

    NOTHING = "nothing"
    NORMS = "norms of the input features"
    MOMENT = "the second moment of the inputs"


@dataclass(frozen=True)
class ZeroingMethod:
    """Base of the methods.

    Attributes:
        name: name in recipes, on the command line and in records.
        evidence: evidence that the method needs besides the weights.
    """

    name: ClassVar[str] = ""
    evidence: ClassVar[Evidence] = Evidence.MOMENT

    def __post_init__(self) -> None:
        check_fields(self)

    def compared_weights(self, rows: int, width: int) -> int:
        """Number of weights of a ``(rows, width)`` matrix that are compared with each other in a free pattern."""
        raise NotImplementedError


@dataclass(frozen=True)
class WholeMask(ZeroingMethod):
    """Base of the masks that are chosen in one step, without updates of the remaining weights.

    Attributes:
        within: scope of the comparison of weights, ``row`` or ``matrix``; None takes the method's default.
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
        """Scope of the comparison of weights."""
        return self.within or self.usual

    def compared_weights(self, rows: int, width: int) -> int:
        """All weights of a row, or of the matrix."""
        return width if self.compared_within == "row" else rows * width


@dataclass(frozen=True)
class MagnitudeMask(WholeMask):
    """Zeroes the smallest weights of a matrix."""

    name = "magnitude"
    evidence = Evidence.NOTHING
    usual = "matrix"


@dataclass(frozen=True)
class WandaMask(WholeMask):
    """Zeroes the weights of each row with the smallest ``|W_ij|·‖X_j‖₂`` (arXiv 2306.11695, Eq. 1).

    Attributes:
        variant: whether rows lose the same share of their scores instead of the same number of weights.
    """

    name = "wanda"
    evidence = Evidence.NORMS
    variant: bool = setting(False, "criterion wanda: remove the same share of the scores of each row")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant and self.within is not None:
            raise ValueError("within applies to wanda and magnitude masks that are chosen in one step. Leave it out.")

    def compared_weights(self, rows: int, width: int) -> int:
        """All weights of a row or of the matrix; for the variant, whose rows lose different numbers, of the matrix."""
        return rows * width if self.variant else super().compared_weights(rows, width)


@dataclass(frozen=True)
class WithUpdates(ZeroingMethod):
    """Base of the methods that compensate for zeroed weights in later columns (arXiv 2301.00774).

    Attributes:
        damping: ridge as a share of the mean diagonal of the second moment.
        block_size: number of columns that are compared and updated together.
    """

    damping: float = setting(0.01, "ridge of sparsegpt, wanda+obs and magnitude+obs", within="[0, 1)", idle=True)
    block_size: int = setting(128, "columns that sparsegpt compares and updates together", within="[1, inf)")

    def compared_weights(self, rows: int, width: int) -> int:
        """All weights of a block of columns."""
        return rows * min(width, self.block_size)


@dataclass(frozen=True)
class SparseGpt(WithUpdates):
    """Compares the weights of a block of columns by the cost of losing them, and updates the other weights."""

    name = "sparsegpt"


@dataclass(frozen=True)
class MaskWithUpdates(WithUpdates):
    """Base of the masks of magnitude and Wanda with SparseGPT's updates.

    Attributes:
        order: ``sequential`` chooses all weights before any update; ``iterative`` chooses block by block of columns,
            on the updated weights.
        within: scope of the comparison for the order ``sequential``, see :class:`WholeMask`.
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
            raise ValueError("within applies to wanda and magnitude masks that are chosen in one step. Leave it out.")

    def compared_weights(self, rows: int, width: int) -> int:
        """Those of the mask, or of a block of columns for the order ``iterative``."""
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
