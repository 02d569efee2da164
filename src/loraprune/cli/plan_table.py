"""An estimate on one screen: the model before and after, memory by part, and which GPUs it fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from loraprune.record.numbers import MISSING, count, file_size, percent, significant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loraprune.measure.estimation.result import Estimate, ModelSize

GIB = 1024**3
KINDS = {"heads": "KV heads", "query_heads": "query heads", "channels": "FFN channels", "hidden": "hidden size"}


def show(console: Console, estimates: Sequence[Estimate]) -> None:
    """Print estimates of one model, one ratio after the other; what is the same is said once."""
    first = estimates[0]
    console.print(_headline(first), highlight=False, markup=False, soft_wrap=True)
    console.print(_sizes(estimates))
    console.print(_memory(estimates))
    console.print(_gpus(first))
    for line in _remedies(first):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in _lines(estimates):
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _headline(estimate: Estimate) -> str:
    run = estimate.settings
    rows = f"{run['batch_size']} x {run['max_length']} tokens" if run["max_length"] else f"{run['batch_size']} rows"
    accumulated = run["gradient_accumulation_steps"]
    parts = [
        f"{estimate.model}: {estimate.model_type}, {count(estimate.before.parameters)} parameters",
        f"{rows}{f' x {accumulated} micro-batches' if accumulated > 1 else ''}",
        f"criterion {run['pruning']['criterion']}",
        f"LoRA r {run['lora']['r']}",
        f"base {run['quantization'] or run['dtype']}",
        f"gradient checkpointing {'on' if run['gradient_checkpointing'] else 'off'}",
    ]
    return ", ".join(parts)


def _sizes(estimates: Sequence[Estimate]) -> Table:
    columns = [f"ratio {found.ratio:.3f}" for found in estimates]
    table = _table("the model", "before", *columns)
    before = estimates[0].before
    sizes = [before, *(found.after for found in estimates)]
    table.add_row("parameters", *(count(size.parameters) for size in sizes))
    table.add_row("blocks", *(str(size.blocks) for size in sizes))
    for kind in before.widths:
        table.add_row(KINDS.get(kind, kind.replace("_", " ")), *(_widths(size, kind) for size in sizes))
    table.add_row("file", *(file_size(size.file_bytes) for size in sizes))
    table.add_row("operations of a forward pass", *(_operations(size.forward_flops) for size in sizes))
    if before.cache_bytes:
        table.add_row("KV cache for 1,000 tokens", *(file_size(1000 * (size.cache_bytes or 0)) for size in sizes))
    steps = [estimates[0].step_flops, *(found.step_flops_after for found in estimates)]
    table.add_row("operations of a training step", *(_operations(value) for value in steps))
    return table


def _widths(size: ModelSize, kind: str) -> str:
    least, most = size.widths[kind]
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _operations(value: float) -> str:
    return count(value).replace(" T", "e12").replace(" B", "e9") if value < 1e15 else f"{significant(value / 1e15)}e15"


def _memory(estimates: Sequence[Estimate]) -> Table:
    columns = [f"after {found.ratio:.3f}" for found in estimates]
    table = _table("memory of a training step, GiB", "before the cuts", *columns)
    memories = [estimates[0].memory, *(found.memory_after for found in estimates)]
    for label, name in (
        ("weights of the base", "weights"),
        ("adapter, gradients, optimizer", "adapter"),
        ("activations that wait", "activations"),
        ("loss, backward pass of a block", "temporary"),
        ("criterion", "criterion"),
        ("peak of a step", "step"),
    ):
        style = "bold" if name == "step" else None
        table.add_row(label, *(_gib(getattr(memory, name)) for memory in memories), style=style)
    cuts = [found.memory.cut for found in estimates]
    if any(cuts):
        table.add_row("peak of the first cut, with refit", MISSING, *(_gib(cut) for cut in cuts))
    return table


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}" if value < 10 * GIB else f"{value / GIB:.1f}"


def _gpus(estimate: Estimate) -> Table:
    table = _table("GPU", "has, GiB", "needs", "fits", "s a step", "after")
    for fit in estimate.gpus:
        mark = "[green]\N{CHECK MARK}[/green]" if fit.fits else "[red]\N{BALLOT X}[/red]"
        seconds = (significant(fit.seconds, 2), significant(fit.seconds_after, 2)) if fit.fits else (MISSING, MISSING)
        needs = f"{fit.needed / GIB:.1f}{'*' if fit.dtype != estimate.settings['dtype'] else ' '}"
        table.add_row(fit.gpu, f"{fit.usable / GIB:.1f}", needs, mark, *seconds)
    return table


def _remedies(estimate: Estimate) -> Iterator[str]:
    """With what the run fits where it does not, cards that want the same together."""
    by_remedy: dict[str | None, list[str]] = {}
    for fit in estimate.gpus:
        if not fit.fits:
            by_remedy.setdefault(fit.remedy, []).append(fit.gpu)
    for remedy, gpus in reversed(by_remedy.items()):
        how = "Nothing that was tried makes it fit" if remedy is None else f"It fits with {remedy}"
        yield f"{how}: {', '.join(gpus)}."


def _lines(estimates: Sequence[Estimate]) -> Iterator[str]:
    from loraprune.measure.estimation.estimation_gpus import CONTEXT, FRAGMENTED
    from loraprune.measure.estimation.timing import UTILIZATION

    first = estimates[0]
    if any(abs(found.ratio - found.asked) > 0.0005 for found in estimates):
        yield "Ratios differ from those asked for, since head counts and FFN widths come in steps."
    yield from dict.fromkeys(note for found in estimates for note in found.notes)
    if any(fit.dtype != first.settings["dtype"] for fit in first.gpus):
        yield "* No bfloat16: it would train in 32 bits."
    yield (
        f"Estimates. Memory in GiB; a GPU has what its driver reports, less {CONTEXT:g} GiB for CUDA and "
        f"{percent(FRAGMENTED)} for fragmentation; rows are full. Times assume {percent(UTILIZATION)} of the peak and "
        "were not measured. docs/planning.md says more."
    )
