"""Options and tables of ``loraprune plan`` for a run on several GPUs."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.text import Text

from loraprune.cli.console import plain_table
from loraprune.display.console import print_line
from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.options.field import rule_of
from loraprune.record.numbers import file_size, percent, significant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loraprune.measure.estimation.scaling import GpuScaling, Scaling
    from loraprune.measure.estimation.several_gpus import ClusterFit

_GIB = 1024**3
_KINDS: dict[str, Callable[[str], Any]] = {"int": int, "str | None": str, "float | None": float}


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the GPUs of the run."""
    group = parser.add_argument_group("several GPUs")
    for field in fields(ClusterConfig):
        rule = rule_of(field)
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_KINDS[str(field.type)],
            metavar="|".join(rule.choices) if rule.choices else None,
            help=f"{rule.help} (default: {rule.shown or field.default})",
        )


def cluster_of(given: Mapping[str, Any]) -> ClusterConfig:
    """Make the configuration of the GPUs from the options.

    Raises:
        ValueError: a value is not valid.
    """
    return ClusterConfig(**{field.name: given[field.name] for field in fields(ClusterConfig) if field.name in given})


def show_memory_and_gpus(console: Console, scaling: Scaling, weights: int) -> None:
    """Print memory and traffic of each GPU, and the kinds of GPUs that the run fits.

    Args:
        console: console to print to.
        scaling: estimate for several GPUs.
        weights: size of the model's weights in bytes.
    """
    strategies = {
        kind.fit.strategy: kind.fit for kind in scaling.kinds if kind.fit.dtype == scaling.kinds[-1].fit.dtype
    }
    found = [strategies[name] for name in sorted(strategies)]
    console.print(_memory(found))
    console.print(_traffic(found))
    console.print(_gpus(scaling))
    for line in _reasons(scaling.kinds):
        print_line(console, line)
    holding = [kind.fit for kind in scaling.kinds if kind.fit.fits]
    if holding:
        console.print(_speeds(holding))
        for line in _limits(holding):
            print_line(console, line)
    if any(kind.oneshot for kind in scaling.kinds):
        console.print(_oneshot(scaling))
        line = f"oneshot keeps the whole model, {_gib(weights)} GiB, in each process: on its GPU, or with --offload"
        print_line(console, f"{line} in the machine's memory.")
    for line in _assumptions():
        print_line(console, line, "dim")


def _gib(value: float) -> str:
    return f"{value / _GIB:.2f}" if value < 10 * _GIB else f"{value / _GIB:.1f}"


def _memory(fits: Sequence[ClusterFit]) -> Table:
    table = plain_table("memory of a step on each GPU, GiB", *(fit.strategy for fit in fits))
    for label, name in (
        ("weights of the base, its own part", "base"),
        ("weights of the base, gathered", "gathered"),
        ("adapter, gradients, optimizer", "adapter"),
        ("copy for averaging gradients", "averaging"),
        ("saved activations", "activations"),
        ("loss, backward pass of a block", "temporary"),
        ("criterion", "criterion"),
        ("teacher (dense model)", "teacher"),
        ("peak of a step", "step"),
        ("peak of the first cut, with refit", "cut"),
    ):
        values = [getattr(fit.memory, name) for fit in fits]
        if name in ("teacher", "cut") and not any(values):
            continue
        table.add_row(label, *map(_gib, values), style="bold" if name == "step" else None)
    return table


def _traffic(fits: Sequence[ClusterFit]) -> Table:
    table = plain_table("what each GPU sends in a step", *(fit.strategy for fit in fits))
    for label, name in (
        ("weights of the base, both passes", "base"),
        ("gradients of the adapter", "gradients"),
        ("evidence of the criterion", "evidence"),
        ("total", "total"),
    ):
        table.add_row(
            label, *(_bytes(getattr(fit.traffic, name)) for fit in fits), style="bold" if name == "total" else None
        )
    return table


def _bytes(value: float) -> str:
    return file_size(round(value)) if value else "0"


def _gpus(scaling: Scaling) -> Table:
    table = plain_table("GPU", "strategy", "has, GiB", "needs", "fits")
    for kind in scaling.kinds:
        fit = kind.fit
        mark = Text("\N{CHECK MARK}", "green") if fit.fits else Text("\N{BALLOT X}", "red")
        table.add_row(fit.gpu, fit.strategy, f"{fit.usable / _GIB:.1f}", f"{fit.memory.peak / _GIB:.1f}", mark)
    return table


def _speeds(fits: Sequence[ClusterFit]) -> Table:
    table = plain_table("seconds of a step", "computing", "sending", "both", "tokens/s", "after the cuts")
    for fit in fits:
        seconds = (fit.time.computing, fit.time.communication, fit.time.step)
        table.add_row(
            fit.gpu,
            *(significant(value, 2) for value in seconds),
            f"{fit.tokens_a_second:,.0f}",
            f"{fit.tokens_after:,.0f}",
        )
    return table


def _grouped(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Sentences, each followed by the GPUs that it applies to."""
    names = defaultdict(list)
    for sentence, gpu in pairs:
        names[sentence].append(gpu)
    return (f"{sentence}: {', '.join(gpus)}." for sentence, gpus in names.items())


def _reasons(kinds: Sequence[GpuScaling]) -> Iterator[str]:
    """Reasons for each strategy, and remedies if the run does not fit."""
    yield from _grouped((f"{kind.fit.strategy} ({kind.fit.reason})", kind.fit.gpu) for kind in kinds)
    yield from _grouped((_way_out(kind), kind.fit.gpu) for kind in kinds if not kind.fit.fits)


def _way_out(kind: GpuScaling) -> str:
    ways = [] if kind.fits_from is None else [f"from {kind.fits_from:,} GPUs"]
    ways += [] if kind.remedy is None else [f"with {kind.remedy}"]
    return f"It fits {', or '.join(ways)}" if ways else "Neither more GPUs nor a tried option makes it fit"


def _limits(fits: Sequence[ClusterFit]) -> Iterator[str]:
    """Limits of scaling."""
    yield from _grouped((_limit(fit), fit.gpu) for fit in fits)
    yield from _grouped(
        (f"With {fit.least_tokens:,.0f} tokens a micro-batch, sending would take as long as computing", fit.gpu)
        for fit in fits
        if fit.strategy == "fsdp2"
    )


def _limit(fit: ClusterFit) -> str:
    from loraprune.measure.estimation.several_gpus import MOST_GPUS

    if fit.outgrown_at is None:
        return f"Computing takes longer than sending up to at least {MOST_GPUS:,} GPUs"
    return f"Sending takes longer than computing from {fit.outgrown_at:,} GPUs"


def _oneshot(scaling: Scaling) -> Table:
    table = plain_table("seconds of oneshot", "shared", "not", "sums", "on all", "speed-up", "at most")
    for kind in scaling.kinds:
        time = kind.oneshot
        if time is not None:
            seconds = (time.shared, time.alone, time.communication, time.total)
            table.add_row(
                kind.fit.gpu, *(significant(value, 2) for value in seconds), f"{time.speed_up:.1f}", f"{time.limit:.1f}"
            )
    return table


def _assumptions() -> Iterator[str]:
    from loraprune.measure.estimation.links import COLLECTIVE_SHARE
    from loraprune.measure.estimation.several_gpus import COMMUNICATOR

    yield (
        f"Sending assumes {percent(COLLECTIVE_SHARE)} of the bandwidths in data sheets (or of --node-bandwidth and "
        f"--network-bandwidth) and NCCL rings, whose buffers take {COMMUNICATOR:g} GiB. fsdp2 gathers a block while "
        "it computes the one before. Nothing was measured on several GPUs. See docs/scaling.md."
    )
