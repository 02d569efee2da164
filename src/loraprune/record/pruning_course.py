"""How a run removed groups, for its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraprune.record.codec import LEFT_OUT
from loraprune.record.report_data import Cut


@dataclass(frozen=True, kw_only=True)
class DimensionRecord:
    """A prunable dimension of the model before the run; ``layer`` is None if several layers share it."""

    name: str
    kind: str
    layer: int | None
    groups: int


@dataclass(frozen=True, kw_only=True)
class TriedWidths:
    """Trial of one set of widths before the cut: by kind, groups kept in the widest layer, out of ``of``.

    Attributes:
        divergence: from the dense model, in nats per token; None if the trial gave NaN. ``even``: see WidthTrial.
    """

    widths: Mapping[str, int]
    of: Mapping[str, int]
    divergence: float | None
    even: bool = False


@dataclass(frozen=True, kw_only=True)
class NormsRecord:
    """Tuning of the norms after the last cut.

    Attributes:
        before: divergence from the dense model in nats per token, on calibration rows that were held back.
        after: the same divergence after the tuning.
        steps: optimizer steps; 0 if the norms did not change.
    """

    before: float
    after: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class RepairError:
    """Relative error of the output of one consumer after a cut: without a repair (``cut``) and with it.

    Attributes:
        step: training step before the cut; 0 without training, where ``cut_number`` counts the cuts from 1.
        dimension: the cut dimension; ``kind`` and ``layer``: its kind and layer.
    """

    step: int
    cut_number: int | None = field(default=None, metadata=LEFT_OUT)
    dimension: str
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


@dataclass(frozen=True, kw_only=True)
class PruningCourse:
    """How groups were removed.

    Attributes:
        ratio: removed share of the prunable parameters; ``target_ratio``: requested share.
        parameters_before: number of parameters before the run; ``parameters``: of the result.
        prunable_parameters_before: those of the prunable dimensions; ``prunable_parameters``: after the run.
        repair: repair of a run without training; ``widths``: groups kept by kind and layer, also without training.
        cuts: cuts of a run with training, in order.
        refit_errors: errors of each consumer at each cut.
        trials: widths that were tried, best first; the first one was used.
        norms: tuning of the norms, in a run without training.
        dimensions: dimensions that the plan covers.
    """

    ratio: float
    target_ratio: float
    parameters_before: int
    parameters: int
    prunable_parameters_before: int
    prunable_parameters: int
    repair: str | None = field(default=None, metadata=LEFT_OUT)
    widths: Mapping[str, tuple[int, ...]] | None = field(default=None, metadata=LEFT_OUT)
    cuts: tuple[Cut, ...] | None = field(default=None, metadata=LEFT_OUT)
    refit_errors: tuple[RepairError, ...] = ()
    trials: tuple[TriedWidths, ...] = ()
    norms: NormsRecord | None = field(default=None, metadata=LEFT_OUT)
    dimensions: tuple[DimensionRecord, ...] = ()
