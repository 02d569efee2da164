"""``loraprune bench``: how fast models are, in turns, and what memory and operations they take."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loraprune.cli.console import open_console, print_line, quiet_libraries, report_errors, results_console
from loraprune.cli.options import SWITCH, Option, fields_of, names, option
from loraprune.cli.parsing import Parser, parsed
from loraprune.record import numbers
from loraprune.record.atomic import check_file, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.benchmark.result import BenchFigure, BenchResult


_GROUPS: dict[str, tuple[Option, ...]] = {
    "what is measured": (
        option("profile", "bench", "inference: prefill and decoding; training: a step of plain LoRA, of each "
               "criterion, with masks and with slices (inference)"),
        option("tokens", "bench", "tokens of a sequence (2048, in training 512, or the context if that is shorter)",
               type=int),
        option("batch_size", "bench", "sequences or images of a pass (1)", type=int),
        option("decode_batch", "bench", "sequences that are decoded at once (1 8)", type=int, nargs="+", metavar="N"),
        option("decoding", "call", "measure decoding (on)", **SWITCH),
        option("new_tokens", "bench", "tokens that a timed run decodes for each sequence (16)", type=int),
        option("repeats", "bench", "timed passes, runs or steps of each model (100, in training 20)", type=int),
        option("warmup", "bench", "passes, runs or steps before them (10, in training 2)", type=int),
    ),
    "where and how": (
        option("device", "bench", "cpu, cuda or cuda:N (the first accelerator, or the CPU)"),
        option("threads", "bench", "CPU threads (torch's own number)", type=int),
        option("dtype", "bench", "float32, bfloat16 or float16 (the first model's own; on a CPU float32)"),
        option("attn_implementation", "bench", "sdpa, eager, flash_attention_2, ... (each model's own)"),
        option("one_at_a_time", "bench", "load one model after the other, for want of memory; they take no turns (off)",
               **SWITCH),
        option("seed", "bench", "of random input and weights (42)", type=int),
    ),
    "models": (
        option("against_base", "bench", "first the dense shapes that the model was pruned from, with random weights; "
               "their config is enough (off)", **SWITCH),
        option("base", "bench", "base of an adapter, or of --against-base, in place of the one that the folder names"),
        option("trust_remote_code", "bench", "run code that a checkpoint brings (off)", **SWITCH),
        option("revision", "bench", "branch, tag or commit of a hub checkpoint"),
    ),
    "of the profile training": (
        option("criteria", "bench", "criteria to time, such as fisher,lora (all that score groups)", type=names),
        option("ratio", "bench", "sparsity ratio of masks and slices (0.5)", type=float),
        option("accumulation", "bench", "passes in a step (1)", type=int),
        option("bf16", "bench", "bf16 autocast (on where an accelerator has it)", **SWITCH),
        option("gradient_checkpointing", "bench", "compute activations again (on on an accelerator)", **SWITCH),
        option("quantization", "bench", "bnb-8bit, bnb-4bit or torchao-int8 base (none)"),
        option("lora_r", "bench", "rank of LoRA (8)", type=int),
        option("offload_grads", "bench", "of taylor: gradients are kept in the machine's memory (off)", **SWITCH),
    ),
    "what comes out": (
        option("output", "call", "file for all figures with their raw times", type=Path, metavar="FILE.json"),
        option("quiet", "call", "results only", **SWITCH),
    ),
}  # fmt: skip

_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}


# The command.


_DESCRIPTION = """Measure prefill and decoding (or, with --profile training, a training step) of one or several models
that are loaded at once and take turns, so that their ratios are fair on a noisy machine. Adapters are measured unmerged
and merged. Random input; nothing is downloaded but models."""

_EXAMPLES = """examples:
  loraprune bench DENSE PRUNED -o bench.json
  loraprune bench PRUNED --against-base
  loraprune bench DENSE --profile training --criteria fisher,lora --tokens 512
"""


def bench_parser() -> Parser:
    """Models and options, without defaults: those stand beside ``BenchConfig``."""
    made = Parser(
        prog="loraprune bench",
        usage="loraprune bench MODEL... [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("models", nargs="*", metavar="MODEL", help="folders or hub names of checkpoints or adapters; "
                      "the first is what the others are compared with")  # fmt: skip
    for title, options in _GROUPS.items():
        group = made.add_argument_group(title)
        for item in options:
            short = [f"-{item.name[0]}"] if item.name in ("output", "quiet") else []
            group.add_argument(
                *short, item.flag, dest=item.name, default=argparse.SUPPRESS, help=item.help, **item.extra
            )
    return made


def bench_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        bench_parser().print_help() if arguments else bench_parser().print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(arguments, console))


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """The given options.

    Raises:
        ValueError: one is unknown (the nearest known one is suggested) or wrong, or no model was given.
    """
    values = vars(parsed(bench_parser(), arguments))
    if not values["models"]:
        raise ValueError("No model was given. Name one or several: loraprune bench DENSE PRUNED.")
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


def _run(arguments: Sequence[str], console: Console) -> int:
    values = _values(arguments)

    from loraprune.measure.benchmark.bench import bench
    from loraprune.measure.benchmark.config import BenchConfig

    quiet_libraries()
    config = BenchConfig(**fields_of(_OPTIONS, values, "bench"))
    progress = BenchProgress(console, quiet=bool(values.get("quiet")))
    command = shlex.join(["loraprune", "bench", *arguments])
    try:
        result = bench(values["models"], config, command=command, progress=progress)
    finally:
        progress.close()
    results = results_console()
    try:
        if values.get("output") is not None:
            write_text(values["output"], result.to_text())  # before anything is printed, which may fail
    finally:  # what took long to measure is shown in any case
        _show(results, result)
    if values.get("output") is not None:
        print_line(results, f"Figures: {values['output']}")
    return 0


# What a running benchmark shows: the thing that is timed, how far it is, and the time left for it.


class BenchProgress:
    """A live line in a terminal, else one plain line for each thing that is timed."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live: Progress | None = None
        if console.is_terminal and not quiet:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("loading", total=None)
            self._live.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take in that ``done`` of ``total`` calls of a stage are over."""
        if self._live is not None:
            if done == 0:
                self._live.reset(self._task, description=stage, total=total)
            self._live.update(self._task, completed=done)
        elif done == 0 and not self._quiet:
            self._console.print(f"{stage} ({total} calls)", markup=False, highlight=False)

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None


# A benchmark as tables for the terminal: one of the models, and one for each thing that was timed.


def _show(console: Console, result: BenchResult) -> None:
    """Print everything."""
    if result.profile == "inference":
        console.print(Text("Models", style="bold"))
        console.print(models_table(result))
    for figures in result.tables():
        console.print(Text(title_of(figures[0]), style="bold"))
        console.print(_figures_table(figures))
    for name, reason in result.left_out.items():
        console.print(Text(f"Left out: {name}: {reason}", style="yellow"), soft_wrap=True)
    console.print(Text(_circumstances(result), style="dim"), soft_wrap=True)


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


def _figures_table(figures: tuple[BenchFigure, ...]) -> Table:
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


def title_of(figure: BenchFigure) -> str:
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


def _circumstances(result: BenchResult) -> str:
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
