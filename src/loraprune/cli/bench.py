"""``loraprune bench``: speed, memory and operations of models that take turns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loraprune.checkpoint.names import check_no_preset
from loraprune.cli.console import begin, open_console, report_errors, results_console
from loraprune.cli.declared import declared
from loraprune.cli.options import (
    MODEL_HELP,
    SWITCH,
    Option,
    OptionGroups,
    add_option,
    by_name,
    fields_of,
    names,
    option,
)
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.cli.shared_options import QUIET
from loraprune.display.console import print_line
from loraprune.measure.benchmark.config import BenchConfig
from loraprune.record import numbers
from loraprune.record.atomic import check_file, write_text
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.benchmark.result import BenchFigure, BenchResult


_GROUPS: OptionGroups = {
    "most used": (
        option("against_base", "bench", "compare with the dense model's shapes and random weights",
               **SWITCH),
        option("profile", "bench", "inference (prefill and decoding) or training (steps of LoRA with each criterion) "
               "(default: inference)"),
        option("tokens", "bench", "tokens in a sequence (default: 2048, in training 512, or the context if shorter)",
               type=int),
        option("batch_size", "bench", "sequences or images in a batch (default: 1)", type=int),
        option("decode_batch", "bench", "batch sizes for decoding (default: 1 8)", type=int, nargs="+", metavar="N"),
        option("repeats", "bench", "timed calls of each model (default: 100, in training 20)", type=int),
        option("device", "bench", "cpu, cuda or cuda:N (default: the first accelerator)"),
        option("dtype", "bench", "float32, bfloat16 or float16 (default: the first model's; float32 on a CPU)"),
        option("output", "call", "file for all figures and raw times", type=Path, metavar="FILE.json"),
        QUIET,
    ),
    "details": (
        option("decoding", "call", "measure decoding (default: on)", **SWITCH),
        option("new_tokens", "bench", "tokens to decode for each sequence (default: 16)", type=int),
        option("warmup", "bench", "calls before the timed ones (default: 10, in training 2)", type=int),
        option("threads", "bench", "CPU threads (default: torch's own number)", type=int),
        option("attn_implementation", "bench", "sdpa, eager, flash_attention_2, ... (default: each model's own)"),
        option("one_at_a_time", "bench", "load models one after the other: less memory, less exact ratios", **SWITCH),
        option("seed", "bench", "random seed for inputs and weights (default: 42)", type=int),
    ),
    "models": (
        option("base", "bench", "base model of an adapter or for --against-base (default: the one that MODEL names)"),
        *declared(RunOptions, "bench", "revision", "trust_remote_code"),
    ),
    "with --profile training": (
        option("criteria", "bench", "criteria to time, such as fisher,lora (default: all)", type=names),
        option("ratio", "bench", "share of parameters to remove with masks and slices (default: 0.5)", type=float),
        option("accumulation", "bench", "batches in an optimizer step (default: 1)", type=int),
        option("bf16", "bench", "bfloat16 autocast (default: on if the accelerator supports it)", **SWITCH),
        option("gradient_checkpointing", "bench", "recompute activations to save memory (default: on with an "
               "accelerator)", **SWITCH),
        option("quantization", "bench", "quantize the base model: bnb-8bit, bnb-4bit or torchao-int8 (default: none)"),
        option("lora_r", "bench", "rank of the LoRA adapter (default: 8)", type=int),
        option("offload_grads", "bench", "criterion taylor: keep gradients in CPU memory", **SWITCH),
    ),
}  # fmt: skip

_OPTIONS: dict[str, Option] = by_name(_GROUPS)


# The command.


_DESCRIPTION = """Measure speed, memory and operations of models. They take turns, so a busy machine does not distort
their ratios. Inputs are random."""

_EXAMPLES = """examples:
  loraprune bench MODEL pruned -o bench.json
  loraprune bench pruned --against-base
  loraprune bench MODEL --profile training --criteria fisher,lora --tokens 512
"""


def bench_parser() -> Parser:
    """Make the parser, without defaults: ``BenchConfig`` has them."""
    made = Parser(
        "loraprune bench",
        usage="loraprune bench MODEL... [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"{MODEL_HELP}, or folder of an adapter; the others "
                      "are compared with the first")  # fmt: skip
    for title, options in _GROUPS.items():
        group = made.add_argument_group(title)
        for item in options:
            add_option(group, item)
    return made


def bench_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = bench_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(parser, arguments, console))


def _values(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse and check the options.

    Raises:
        ValueError: an option is unknown or invalid, or no model was given.
    """
    values = vars(parsed(parser, arguments))
    if not values["models"]:
        raise ValueError("The model is missing. Name one or more: loraprune bench DENSE PRUNED.")
    if values.get("decoding") is False:
        if "decode_batch" in values:
            raise ValueError("--no-decoding and --decode-batch contradict each other. Leave one of them out.")
        values["decode_batch"] = ()
    if values.get("output") is not None:
        check_file(
            values["output"],
            example="bench.json",
            what="benchmark",
            holds=b"loraprune-bench",
            inputs=(*values["models"], values.get("base"), values.get("architecture")),
        )
    return values


def _run(parser: Parser, arguments: Sequence[str], console: Console) -> int:
    values = _values(parser, arguments)
    config = BenchConfig(**fields_of(_OPTIONS, values, "bench"))
    for model in values["models"]:
        check_no_preset(model)
    begin("bench", *values["models"])
    from loraprune.measure.benchmark.bench import bench

    progress = BenchProgress(console, quiet=bool(values.get("quiet")))
    command = shlex.join(["loraprune", "bench", *arguments])
    try:
        result = bench(values["models"], config, command=command, progress=progress)
    finally:
        progress.close()
    results = results_console()
    try:
        if values.get("output") is not None:
            write_text(values["output"], result.to_text())  # before printing, which may fail
    finally:  # show the figures even if they cannot be written
        _show(results, result)
    if values.get("output") is not None:
        print_line(results, f"Figures: {values['output']}", whole=True)
    return 0


# Progress of a running benchmark.


class BenchProgress:
    """Shows a live line in a terminal, otherwise one plain line for each stage."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live: Progress | None = None
        if console.is_terminal and not quiet:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("loading", total=None, count="")
            self._live.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` calls of a stage are done."""
        if self._live is not None:
            if done == 0:
                self._live.reset(self._task, description=stage, total=total)
            self._live.update(self._task, completed=done, count=f"{done}/{total}")
        elif done == 0 and not self._quiet:
            self._console.print(f"{stage} ({numbers.counted(total, 'call')})", markup=False, highlight=False)

    def close(self) -> None:
        """Remove the live line from the terminal, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None


# A benchmark as tables for the terminal: one of the models, and one for each measure.


def _show(console: Console, result: BenchResult) -> None:
    """Print all tables, and the conditions of the figures."""
    if result.profile == "inference":
        console.print(Text("Models", style="bold"))
        console.print(models_table(result))
    for figures in result.tables():
        console.print(Text(title_of(figures[0]), style="bold"))
        console.print(_figures_table(figures))
    for name, reason in result.left_out.items():
        print_line(console, f"Left out: {name}: {reason}", "yellow")
    for line in _circumstances(result):
        print_line(console, line, "dim")


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    return table


def models_table(result: BenchResult) -> Table:
    """Return the table of model sizes, operations of a forward pass, and KV cache of a token."""
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


def _figures_table(figures: tuple[BenchFigure, ...]) -> Table:
    """The table of times; the first contender is the reference for the others."""
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
    """Operations as text: ``6.14 G`` for 6.14 billion."""
    return numbers.count(flops).replace(" B", " G")


def title_of(figure: BenchFigure) -> str:
    """Return the heading of a figure's table: the measure and its settings."""
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


def _circumstances(result: BenchResult) -> list[str]:
    """The conditions of the figures, as lines of text."""
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
    return lines
