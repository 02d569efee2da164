"""A run on several GPUs, for every kind of GPU: whether it fits, options with which it fits, and how it scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.gpus import GPUS, Gpu
from loraprune.measure.estimation.oneshot_time import OneshotTime, oneshot_time
from loraprune.measure.estimation.remedies import FEWER_SEQUENCES
from loraprune.measure.estimation.run_size import RunSize
from loraprune.measure.estimation.several_gpus import (
    MOST_GPUS,
    ClusterFit,
    chosen_strategy,
    memory_of,
    on_cluster,
    usable_beside_others,
)

SMALL_RANK = 8


@dataclass(frozen=True, kw_only=True)
class GpuScaling:
    """A run on several GPUs of one kind.

    Attributes:
        fit: estimate of ``loraprune prune``.
        fits_from: minimum number of GPUs that it fits, if it does not fit these; None if no number is enough.
        remedy: options with which it fits these; None if it fits, or if none of those tried is enough.
        oneshot: seconds of ``loraprune oneshot``; None if unknown.
    """

    fit: ClusterFit
    fits_from: int | None = None
    remedy: str | None = None
    oneshot: OneshotTime | None = None


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A run on several GPUs.

    Attributes:
        gpus: GPUs per node.
        nodes: number of nodes.
        tokens: tokens per step, on all GPUs together.
        kinds: the estimate for every kind of GPU.
    """

    gpus: int
    nodes: int
    tokens: int
    kinds: tuple[GpuScaling, ...]

    @property
    def processes(self) -> int:
        """Number of GPUs."""
        return self.gpus * self.nodes

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain values: bytes, seconds and tokens per second."""
        values = asdict(self)
        for entry, kind in zip(values["kinds"], self.kinds, strict=True):
            entry["fit"]["fits"] = kind.fit.fits
            entry["fit"]["memory"]["peak"] = kind.fit.memory.peak
            entry["fit"]["traffic"]["total"] = kind.fit.traffic.total
        return values


def scale(
    estimator: Estimator, cluster: ClusterConfig, ratio: float | None = None, gpus: tuple[Gpu, ...] = GPUS
) -> Scaling:
    """Estimate the needs of a run on several GPUs.

    Args:
        estimator: estimator of the run on one of them.
        cluster: number of GPUs, their connections, and the sharing of the work.
        ratio: as for :meth:`loraprune.measure.estimation.estimate.Estimator.estimate`.
        gpus: kinds of GPU to estimate.

    Raises:
        ValueError: a run cannot be distributed in this way, or the ratio cannot be reached.
    """
    settings = estimator.settings
    cluster.check(settings.quantization, settings.device)
    work, sequences = estimator.oneshot_work(ratio), settings.pruning.calibration_sequences
    sizes = _Sizes(estimator, ratio)
    kinds, tokens = [], 0
    for gpu in gpus:
        size = sizes.of(gpu, cluster.processes, settings)
        fit = on_cluster(size, gpu, cluster, settings.quantization)
        tokens = size.tokens * size.micro_batches * cluster.processes
        kinds.append(
            GpuScaling(
                fit=fit,
                fits_from=_fits_from(sizes, cluster, gpu, settings, fit),
                remedy=_remedy(sizes, cluster, gpu, settings, fit),
                oneshot=None if work is None else oneshot_time(work, gpu, cluster.ring(gpu.link), sequences),
            )
        )
    return Scaling(gpus=cluster.gpus, nodes=cluster.nodes, tokens=tokens, kinds=tuple(kinds))


class _Sizes:
    """Run sizes for one process, computed once for equal GPUs."""

    def __init__(self, estimator: Estimator, ratio: float | None) -> None:
        self._estimator, self._ratio = estimator, ratio
        self._known: dict[tuple[bool, int, str], RunSize] = {}

    def of(self, gpu: Gpu, processes: int, settings: EstimateConfig) -> RunSize:
        """Return the size for one of this many processes."""
        key = (gpu.bfloat16, processes, repr(settings))
        if key not in self._known:
            self._known[key] = self._estimator.run_size(
                self._ratio, processes=processes, bfloat16=gpu.bfloat16, settings=settings
            )
        return self._known[key]

    def fit(self, gpu: Gpu, processes: int, settings: EstimateConfig, cluster: ClusterConfig) -> bool:
        """Whether the run fits this many GPUs."""
        size = self.of(gpu, processes, settings)
        strategy, _ = chosen_strategy(size, gpu, processes, cluster.strategy, settings.quantization)
        return memory_of(size, strategy, processes).peak <= usable_beside_others(gpu, processes)


def _fits_from(
    sizes: _Sizes, cluster: ClusterConfig, gpu: Gpu, settings: EstimateConfig, fit: ClusterFit
) -> int | None:
    """Number of GPUs, found by doubling, from which the run fits, if it does not fit the given ones."""
    if fit.fits or fit.memory.peak - fit.memory.base > fit.usable:
        return None
    processes = 2 * cluster.processes
    while processes <= MOST_GPUS:
        if sizes.fit(gpu, processes, settings, cluster):
            return processes
        processes *= 2
    return None


def _remedy(sizes: _Sizes, cluster: ClusterConfig, gpu: Gpu, settings: EstimateConfig, fit: ClusterFit) -> str | None:
    """Options with which the run fits, mildest first."""
    if fit.fits or (cluster.strategy != "ddp" and fit.memory.base + fit.memory.gathered > fit.usable):
        return None
    if cluster.strategy == "ddp" and settings.quantization is None:
        shared = memory_of(sizes.of(gpu, cluster.processes, settings), "fsdp2", cluster.processes)
        if shared.peak <= fit.usable:
            return "--strategy fsdp2"
    for flags, changed in _lighter(settings):
        if sizes.fit(gpu, cluster.processes, changed, cluster):
            return flags
    return None


def _lighter(settings: EstimateConfig) -> Iterator[tuple[str, EstimateConfig]]:
    """Ways to reduce memory that is not shared; each one adds to the previous one."""
    flags: list[str] = []
    if settings.batch_size > 1:
        rows = settings.batch_size * settings.gradient_accumulation_steps
        flags.append(f"--per-device-train-batch-size 1 --gradient-accumulation-steps {rows}")
        settings = replace(settings, batch_size=1, gradient_accumulation_steps=rows)
        yield " ".join(flags), settings
    if (settings.lora.r or 0) > SMALL_RANK:
        flags.append(f"--lora-r {SMALL_RANK}")
        settings = replace(settings, lora=replace(settings.lora, r=SMALL_RANK))
        yield " ".join(flags), settings
    pruning = settings.pruning
    if pruning.repairs and pruning.calibration_sequences > FEWER_SEQUENCES:
        fewer = pruning.changed(calibration_sequences=FEWER_SEQUENCES)
        yield " ".join([*flags, f"--calibration-sequences {FEWER_SEQUENCES}"]), replace(settings, pruning=fewer)
    if pruning.repairs:
        yield " ".join([*flags, "--repair none"]), replace(settings, pruning=pruning.changed(repair="none"))
