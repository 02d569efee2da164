"""Configurations of the repairs of the layers that read what a cut removed: one class per repair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from loraprune.options.field import check_choice, check_fields, setting


@dataclass(frozen=True)
class Repair:
    """Base of the repairs.

    Attributes:
        name: name in recipes, on the command line and in records.
        reads_data: whether the repair needs calibration data.
    """

    name: ClassVar[str] = ""
    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LeastSquares(Repair):
    """Base of the repairs that fit the columns that stay by least squares.

    Attributes:
        damping: ridge as a share of the mean diagonal of the second moment of the inputs.
    """

    damping: float = setting(
        0.01, "ridge of the repair and of osscar, as a share of the mean diagonal", within="[0, inf)", idle=True
    )


@dataclass(frozen=True)
class Refit(LeastSquares):
    """Least squares: fits each consumer to its own output before the cut, using the remaining inputs."""

    name = "refit"


@dataclass(frozen=True)
class Stream(LeastSquares):
    """Least squares: fits each consumer to restore the residual stream of the model before the cut.

    If whole blocks are cut, the layers around the gaps are fitted (:mod:`loraprune.surgery.repair_depth`).
    """

    name = "stream"


@dataclass(frozen=True)
class StreamAndReaders(Stream):
    """``stream``, plus a fit of the readers of the stream (q, k, v, gate, up) to their outputs before the cut.

    Layers that write to the stream are fitted in all blocks after the first cut, even if they lose nothing themselves.
    Layers that keep everything (``keep_layers``) keep their weights.

    Source: the asymmetric calibration of GPTAQ (arXiv 2504.02692), with least squares in place of rounding.
    """

    name = "stream+readers"


@dataclass(frozen=True)
class Bias(Repair):
    """Adds the mean contribution of the removed inputs to the consumer's bias.

    Attributes:
        damping: ridge of the least squares inside experts, which have no bias.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """

    name = "bias"
    damping: float = setting(0.01, within="[0, inf)", idle=True)


@dataclass(frozen=True)
class NoRepair(Repair):
    """Makes no repair after a cut."""

    name = "none"
    reads_data = False


REPAIRS: dict[str, type[Repair]] = {kind.name: kind for kind in (Refit, Stream, StreamAndReaders, Bias, NoRepair)}
"""Repairs by name."""


def repair_of(repair: str | Repair, damping: float | None = None) -> Repair:
    """Return a repair by its name, or the object itself. A damping replaces that of a least-squares repair.

    Raises:
        ValueError: there is no repair of that name.
    """
    if isinstance(repair, str):
        check_choice("repair", repair, tuple(REPAIRS))
        repair = REPAIRS[repair]()
    if not isinstance(repair, Repair):
        raise ValueError(f"repair is {repair!r}; pass a name ({', '.join(REPAIRS)}) or an object of loraprune.repairs.")
    if damping is not None and isinstance(repair, (LeastSquares, Bias)):
        return replace(repair, damping=damping)
    return repair
