"""A benchmark as tables for the terminal: one of the models, and one for each thing that was timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.record import numbers

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.benchmark.result import BenchResult, Figure


def show(console: Console, result: BenchResult) -> None:
    """Print everything."""
    if result.profile == "inference":
        console.print(Text("Models", style="bold"))
        console.print(models_table(result))
    for figures in result.tables():
        console.print(Text(title_of(figures[0]), style="bold"))
        console.print(figures_table(figures))
    for name, reason in result.left_out.items():
        console.print(Text(f"Left out: {name}: {reason}", style="yellow"), soft_wrap=True)
    console.print(Text(circumstances(result), style="dim"), soft_wrap=True)


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    return table


def models_table(result: BenchResult) -> Table:
    """Sizes of the models, and what a pass and a token cost in operations and cache."""
    table = _table()
    passes = {figure.contender: figure for figure in result.figures if figure.measure != "decoding"}
    decoded = {figure.contender: figure for figure in result.figures if figure.measure == "decoding"}
    computed = any(model.file_bytes_from not in (None, "files") for model in result.models)
    for name in ("parameters", "file size" + ("*" if computed else ""), "FLOPs/pass"):
        table.add_column(name, justify="right", no_wrap=True)
    if decoded:
        table.add_column("KV cache/token", justify="right", no_wrap=True)
    for model in result.models:
        marked = "*" if model.file_bytes_from not in (None, "files") else ""
        cells = [
            numbers.count(model.parameters),
            numbers.file_size(model.file_bytes) + marked,
            _operations(passes[model.label].flops),
        ]
        if decoded:
            cells.append(numbers.file_size(decoded[model.label].cache_bytes_per_token))
        table.add_row(Text(model.label), *cells)
    if computed:
        table.caption = "* parameters in the stored dtype; the others are files on disk"
        table.caption_justify = "left"
    return table


def figures_table(figures: tuple[Figure, ...]) -> Table:
    """Times of contenders that took turns; the first is what the others are compared with."""
    first = figures[0]
    trains = first.measure == "training step"
    table = _table()
    headings = ["mean", "median", "p95"]
    if not trains:
        headings.append("images/s" if first.tokens is None else "tokens/s")
    headings += ["memory", "time" if trains else "speed"]
    cuts = any(figure.cut_seconds is not None for figure in figures)
    if cuts:
        headings.append("at a cut")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        times = (figure.times.mean, figure.times.median, figure.times.p95)
        cells = [numbers.milliseconds(1000 * value) for value in times]
        if not trains:
            cells.append(numbers.count(figure.per_second))
        cells.append(numbers.file_size(figure.peak_bytes))
        cells.append(numbers.times(figure.share if trains else figure.speed))
        if cuts:
            cut = figure.cut_seconds
            cells.append("" if cut is None else f"+{numbers.milliseconds(1000 * cut)}")
        table.add_row(Text(figure.contender), *cells)
    return table


def _operations(flops: int | None) -> str:
    """``6.14 G``: a billion operations is a G."""
    return numbers.count(flops).replace(" B", " G")


def title_of(figure: Figure) -> str:
    """What was timed, in words."""
    settings = figure.settings
    if figure.measure == "decoding":
        return (
            f"Decoding a token, batch {settings['batch_size']}, after {settings['prompt_tokens']} tokens (runs of "
            f"{settings['new_tokens']})"
        )
    if figure.measure == "training step":
        return f"Training step, {settings['input']}" + _training_words(settings)
    return f"{figure.measure.capitalize()}, {settings['input']}"


def _training_words(settings: Any) -> str:
    words = f", accumulation {settings['accumulation']}" if settings["accumulation"] > 1 else ""
    words += f", {settings['autocast']} autocast" if settings["autocast"] else ""
    words += f", {settings['quantization']}" if settings["quantization"] else ""
    return words + (", gradient checkpointing" if settings["gradient_checkpointing"] else "")


def circumstances(result: BenchResult) -> str:
    """All that the figures depend on, in words."""
    machine, settings = result.machine, result.settings
    attention = sorted({model.attn_implementation or "?" for model in result.models})
    threads = f"{machine['threads']} CPU thread{'s' if machine['threads'] != 1 else ''}"
    turns = "in turns" if settings["turns"] else "one model after the other (ratios of medians)"
    what = "time" if result.profile == "training" else "speed"
    lines = [
        f"{machine['device_name']} ({machine['device']}), {threads}, {settings['dtype']}, {'/'.join(attention)}, torch "
        f"{result.versions.get('torch', '?')}, transformers {result.versions.get('transformers', '?')}.",
        f"Repeats: {settings['repeats']} after {settings['warmup']} of warm-up, {turns}. Memory: peak of "
        f"{machine['memory_counter']}, weights included.",
    ]
    if settings["turns"] and len({figure.contender for figure in result.figures}) > 1:
        lines.append(f"{what.capitalize()}: against the first row, median of the ratios within a turn.")
    if result.profile == "inference":
        lines.append(f"FLOPs: {settings['flops']}.")
    return "\n".join(lines)
