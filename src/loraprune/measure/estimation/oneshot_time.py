"""Speedup of ``loraprune oneshot`` on several GPUs, which share only part of its work."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.gpus import Gpu, step_seconds
from loraprune.measure.estimation.links import Ring
from loraprune.measure.estimation.oneshot_work import FITS, OneshotWork


@dataclass(frozen=True, kw_only=True)
class OneshotTime:
    """Seconds of one cut of all blocks, without loading, measuring and saving.

    Attributes:
        shared: work that the processes share, as seconds of a single process.
        alone: work that each process does itself, including its share of the tried ridges.
        communication: seconds to sum the moments.
        total: seconds on all GPUs.
        speed_up: speedup over one GPU.
        limit: upper bound of the speedup for any number of GPUs.
    """

    shared: float
    alone: float
    communication: float
    total: float
    speed_up: float
    limit: float


def oneshot_time(work: OneshotWork, gpu: Gpu, ring: Ring, sequences: int) -> OneshotTime:
    """Return the seconds of a one-shot run on several GPUs. With fewer sequences than GPUs, nothing is shared.

    Args:
        work: work of the run.
        gpu: kind of GPU.
        ring: all GPUs.
        sequences: number of calibration sequences.
    """
    passes = step_seconds(work.passes, gpu)
    moments, solves, tried = (in_single_seconds(flops, gpu) for flops in (work.moments, work.solves, work.tried))
    shared, processes = passes + moments, ring.processes
    alone = solves + tried * -(-FITS // processes) / FITS
    everything = shared + solves + tried
    split = sequences >= processes > 1
    part = -(-sequences // processes) / sequences if split else 1.0
    communication = ring.sum_seconds(work.summed, work.sums) if split else 0.0
    total = part * shared + alone + communication
    return OneshotTime(
        shared=shared,
        alone=alone,
        communication=communication,
        total=total,
        speed_up=everything / total,
        limit=everything / (solves + tried / FITS),
    )


def in_single_seconds(flops: float, gpu: Gpu) -> float:
    """Seconds of operations in 32 bits."""
    return step_seconds(flops * gpu.tflops / gpu.single, gpu)
