"""The tables of docs/scaling.md: three shapes on 1 to 64 GPUs of 80 GB, as ``loraprune plan`` estimates them.

    python benchmarks/scaling.py               # all of them
    python benchmarks/scaling.py llama-2-7b    # one shape

Nothing is loaded and nothing is measured: the arithmetic takes a few seconds of CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from loraprune.checkpoint.shapes import find_shapes
from loraprune.cli.console import begin
from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.gpus import GIB, GPUS
from loraprune.measure.estimation.scaling import GpuScaling, scale
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions

CLUSTERS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8))
"""GPUs of a node, and nodes."""

GPU = "H100 80 GB"

LIGHT: dict[str, Any] = {
    "batch_size": 1,
    "lora": LoraOptions(r=8),
    "pruning": PruningConfig(ratio=0.5, repair="none"),
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": ("", {}),
    "llama-3-70b": ("", {}),
    "llama-3.1-405b": (" --per-device-train-batch-size 1 --lora-r 8 --repair none", LIGHT),
}
"""Presets, with options in words and as settings."""

STEPS = "| GPUs | strategy | GiB on each | fits | GB sent | computing, s | sending, s | step, s | tokens/s |"
ONESHOT = "| GPUs | shared, s | not shared, s | sums, s | in all, s | times as fast |"


def found(name: str) -> Iterator[tuple[int, GpuScaling]]:
    """A shape on each number of GPUs."""
    (gpu,) = [gpu for gpu in GPUS if gpu.name == GPU]
    estimator = Estimator(find_shapes(name), EstimateConfig(**SHAPES[name][1]))
    for gpus, nodes in CLUSTERS:
        (kind,) = scale(estimator, ClusterConfig(gpus=gpus, nodes=nodes), gpus=(gpu,)).kinds
        yield gpus * nodes, kind


def rows(name: str) -> Iterator[str]:
    """Both tables of a shape, line by line."""
    kinds = list(found(name))
    yield f"`loraprune plan {name}{SHAPES[name][0]} --gpus 8 --nodes 8`, on {GPU}:"
    yield from ("", STEPS, "|--:|---|--:|---|--:|--:|--:|--:|--:|")
    for count, kind in kinds:
        fit = kind.fit
        seconds = (fit.time.computing, fit.time.communication, fit.time.step)
        cells = [
            f"{fit.memory.peak / GIB:.1f}",
            "yes" if fit.fits else "no",
            f"{fit.traffic.total / 1e9:.1f}",
            *(f"{value:.2f}" for value in seconds),
            f"{fit.tokens_a_second:,.0f}",
        ]
        yield f"| {count} | {fit.strategy if count > 1 else '–'} | {' | '.join(cells)} |"
    yield from ("", f"`loraprune oneshot` of {name}, 128 × 2,048 tokens:", "", ONESHOT, "|--:|--:|--:|--:|--:|--:|")
    for count, kind in kinds:
        time = kind.oneshot
        assert time is not None
        part = time.total - time.alone - time.communication
        yield (
            f"| {count} | {part:,.0f} | {time.alone:,.0f} | {time.communication:.1f} | {time.total:,.0f} | "
            f"{time.speed_up:.1f} |"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)} (all)")
    asked = parser.parse_args().shapes or list(SHAPES)
    for name in asked:
        if name not in SHAPES:
            parser.error(f"{name} is none of {', '.join(SHAPES)}")
    begin()
    for name in asked:
        print("\n".join(rows(name)), end="\n\n")


if __name__ == "__main__":
    main()
