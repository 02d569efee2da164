"""``loraprune plan``: estimates of size, memory and time of a pruned model, without loading weights."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from loraprune.checkpoint.names import PRESETS, as_typed
from loraprune.cli.console import (
    begin,
    open_console,
    plain_table,
    report_errors,
    results_console,
    show_runtimes,
)
from loraprune.cli.options import SHAPES_HELP, add_old_options, parameter_count, with_new_names
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.cli.plan_several import add_cluster_options, cluster_of, show_memory_and_gpus
from loraprune.cli.prune import PRUNE_OPTIONS, settle_quantization
from loraprune.cli.shared_options import settle_amount
from loraprune.display.console import print_line
from loraprune.record.atomic import check_file, write_text
from loraprune.record.numbers import MISSING, count, file_size, significant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loraprune.measure.estimation.cluster import ClusterConfig
    from loraprune.measure.estimation.estimate import Estimator
    from loraprune.measure.estimation.result import Estimate, ModelSize
    from loraprune.measure.estimation.scaling import Scaling

PRUNING = ("criterion", "taylor_form", "lora_form", "group_reduction", "offload_grads", "allocation", "widths",
           "dimensions", "keep_layers", "repair", "calibration_sequences", "channel_multiple", "cuts")  # fmt: skip
"""Options of the pruning configuration, under the same names."""

_OLD = ("refit",)
"""Old names of options, from :data:`~loraprune.cli.options.OLD_OPTIONS`."""

_MAIN = ("criterion", "dimensions", "keep_layers", "allocation", "repair", "calibration_sequences")
"""Options in ``PRUNING`` that most runs set."""

RUN = ("target_params", "target_size", "target_kv_cache", "max_length", "gradient_accumulation_steps",
       "gradient_checkpointing", "dtype", "bf16", "device", "batch_size", "distill")  # fmt: skip
"""Options of the run, under the same names."""


def plan_parser() -> Parser:
    """Make the parser of the command. Options of ``loraprune prune`` have the same names and meaning."""
    parser = Parser(
        "loraprune plan",
        usage="loraprune plan MODEL [options]",
        description="Estimate size, memory and time of a pruned model, and which GPUs the run fits, without loading "
        "weights. docs/planning.md explains the figures.",
        epilog="presets, shapes of well-known models (a local folder of the same name wins):\n" + _wrapped(PRESETS),
    )
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
    parser.add_argument("model", metavar="MODEL", help=SHAPES_HELP)
    most = parser.add_argument_group("most used")
    most.add_argument("--ratio", type=float, nargs="+", help="share of the prunable parameters to remove; give several "
                      "to compare them (default: 0.5)")  # fmt: skip
    most.add_argument("--per-device-train-batch-size", "--batch-size", dest="batch_size", type=int, metavar="N",
                      help="rows in a batch on each device (default: 8)")  # fmt: skip
    most.add_argument("--max-length", type=int, help="tokens in a row (default: 1024, or the model's context)")
    most.add_argument("--load-in-8bit", action="store_true", help="quantize the base model to 8 bits")
    most.add_argument("--load-in-4bit", action="store_true", help="quantize the base model to 4 bits (NF4)")
    most.add_argument("--json", action="store_true", help="print JSON, in bytes, operations and seconds")
    most.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="also write the JSON to a file")
    other = parser.add_argument_group("instead of --ratio")
    other.add_argument("--target-params", type=parameter_count, help=PRUNE_OPTIONS["target_params"].help)
    _add_as_in_prune(other, ("target_size", "target_kv_cache", "widths"))
    _add_as_in_prune(parser.add_argument_group("pruning"), _MAIN)
    run = parser.add_argument_group("training")
    run.add_argument("--gradient-accumulation-steps", type=int, help="batches in an optimizer step (default: 1)")
    run.add_argument("--gradient-checkpointing", help="recompute activations to save memory (default: on)", **switch)
    run.add_argument("--bf16", help="bfloat16 autocast (default: on)", **switch)
    run.add_argument("--dtype", help="data type of the weights: bfloat16, float16 or float32 (default: the config's)")
    run.add_argument("--quantization", help=PRUNE_OPTIONS["quantization"].help)
    run.add_argument("--device", help="cuda, or cpu to compare with a measurement on a CPU (default: cuda)")
    _add_as_in_prune(run, ("lora_r", "lora_target_modules", "distill"))
    add_cluster_options(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--revision", help=PRUNE_OPTIONS["revision"].help)
    model.add_argument("--trust-remote-code", action="store_true", help=_plain("trust_remote_code"))
    model.add_argument("--architecture", type=Path, metavar="FILE.yaml", help=PRUNE_OPTIONS["architecture"].help)
    rare = "details of pruning"
    _add_as_in_prune(parser.add_argument_group(rare), [name for name in PRUNING if name not in (*_MAIN, "widths")])
    parser.rare = {rare}
    add_old_options(parser, _OLD)
    return parser


def _plain(name: str) -> str:
    """The help of an option of ``loraprune prune``, without its default."""
    return PRUNE_OPTIONS[name].help.partition(" (default")[0]


def _add_as_in_prune(group: Any, names: Iterable[str]) -> None:
    """Add options of ``loraprune prune``, with their help."""
    for item in map(PRUNE_OPTIONS.__getitem__, names):
        help = item.help.replace("%", "%%")
        group.add_argument(item.flag, dest=item.name, default=None, help=help, **item.extra)


def _wrapped(items: Any) -> str:
    return textwrap.fill(", ".join(items), 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def plan_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = plan_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def _run(options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if value is not None}
    vars(options).update(with_new_names(given, _OLD))
    settle_amount(given, given)
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(f"The folder of {options.output} does not exist. Create it, or name another file.")
    if options.output is not None:
        check_file(
            options.output,
            example="plan.json",
            what="estimate",
            holds=b'"step_flops"',
            inputs=(options.model, options.architecture),
        )
    cluster, settings = cluster_of(given), _settings(options)
    cluster.check(settings.quantization, settings.device)
    begin(*(() if options.json else ("plan", options.model)))
    from loraprune.architectures import read_spec, register
    from loraprune.checkpoint.shapes import find_shapes
    from loraprune.measure.estimation.estimate import Estimator

    _import_peft()
    if options.architecture is not None:
        register(read_spec(options.architecture))
    source = find_shapes(options.model, trust_remote_code=options.trust_remote_code, revision=options.revision)
    estimator = Estimator(source, settings)
    estimates = [estimator.estimate(ratio) for ratio in options.ratio or [None]]
    scalings = _scalings(estimator, cluster, options.ratio or [None])
    text = json.dumps(_values(estimates, scalings), indent=2)
    if options.json:
        print(text)
    else:
        _show(results_console(), estimates, scalings)
    if options.output is not None:
        write_text(options.output, text + "\n")
    return 0


def _import_peft() -> None:
    """Import peft without torch's compiler: bitsandbytes, which peft imports, would load it, and a plan needs none."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import_module("peft")
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _scalings(estimator: Estimator, cluster: ClusterConfig, ratios: Sequence[float | None]) -> list[Scaling]:
    """The run on several GPUs, for each ratio; empty with one GPU."""
    if cluster.processes == 1:
        return []
    from loraprune.measure.estimation.scaling import scale

    return [scale(estimator, cluster, ratio) for ratio in ratios]


def _values(estimates: Sequence[Estimate], scalings: Sequence[Scaling]) -> list[dict[str, Any]]:
    values = [found.to_json() for found in estimates]
    for entry, scaling in zip(values, scalings, strict=False):
        entry["several_gpus"] = scaling.to_json()
    return values


def _settings(options: argparse.Namespace) -> Any:
    """The configuration of the planned run."""
    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.pruning.config import PruningConfig
    from loraprune.tasks.options import LoraOptions

    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    given |= {name: False for name in (*PRUNING, *RUN) if getattr(options, name, None) is False}
    settle_quantization(given, dict(given))
    ratios = options.ratio or ()
    for ratio in ratios:
        if not 0.0 < ratio < 1.0:
            raise ValueError(
                f"--ratio is {ratio:g}; it must lie between 0 and 1: the share of prunable weights to remove."
            )
    pruning = {name: given[name] for name in PRUNING if name in given}
    lora = {"r": given.get("lora_r"), "target_modules": given.get("lora_target_modules")}
    return EstimateConfig(
        pruning=PruningConfig(**pruning),
        lora=LoraOptions(**{name: value for name, value in lora.items() if value is not None}),
        quantization=given.get("quantization"),
        **{name: given[name] for name in RUN if name in given},
    )


# The estimate as tables: model before and after, memory by part, and GPUs.

_GIB = 1024**3
_KINDS = {"heads": "KV heads", "query_heads": "query heads", "channels": "FFN channels", "hidden": "hidden size"}


def _show(console: Console, estimates: Sequence[Estimate], scalings: Sequence[Scaling]) -> None:
    """Print estimates of one model for all ratios."""
    first = estimates[0]
    print_line(console, _headline(first))
    if scalings:
        several = scalings[0]
        each = f"{several.nodes} nodes of {several.gpus} GPUs" if several.nodes > 1 else f"{several.gpus} GPUs"
        print_line(console, f"On {each}: {several.tokens:,} tokens a step on all GPUs together.")
    console.print(_sizes(estimates))
    if scalings:
        show_memory_and_gpus(console, scalings[0], first.before.file_bytes)
    else:
        console.print(_memory(estimates))
        console.print(_gpus(first))
        for line in _remedies(first):
            print_line(console, line)
    for loads_in in dict.fromkeys(found.loads_in for found in estimates):
        show_runtimes(console, loads_in)
    for line in _lines(estimates):
        print_line(console, line, "dim")


def _headline(estimate: Estimate) -> str:
    run = estimate.settings
    rows = f"{run['batch_size']} x {run['max_length']} tokens" if run["max_length"] else f"{run['batch_size']} rows"
    accumulated = run["gradient_accumulation_steps"]
    parts = [
        f"{as_typed(estimate.model)}: {estimate.model_type}, {count(estimate.before.parameters)} parameters",
        f"{rows}{f' x {accumulated} micro-batches' if accumulated > 1 else ''}",
        f"criterion {run['pruning']['criterion']}",
        f"LoRA r {run['lora']['r']}",
        f"base {run['quantization'] or run['dtype']}",
        f"gradient checkpointing {'on' if run['gradient_checkpointing'] else 'off'}",
    ]
    return ", ".join(parts)


def _sizes(estimates: Sequence[Estimate]) -> Table:
    columns = [f"ratio {found.ratio:.3f}" for found in estimates]
    table = plain_table("the model", "before", *columns)
    before = estimates[0].before
    sizes = [before, *(found.after for found in estimates)]
    table.add_row("parameters", *(count(size.parameters) for size in sizes))
    table.add_row("blocks", *(str(size.blocks) for size in sizes))
    for kind in before.widths:
        table.add_row(_KINDS.get(kind, kind.replace("_", " ")), *(_widths(size, kind) for size in sizes))
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
    table = plain_table("memory of a training step, GiB", "before the cuts", *columns)
    memories = [estimates[0].memory, *(found.memory_after for found in estimates)]
    for label, name in (
        ("weights of the base", "weights"),
        ("adapter, gradients, optimizer", "adapter"),
        ("saved activations", "activations"),
        ("loss, backward pass of a block", "temporary"),
        ("criterion", "criterion"),
        ("teacher (dense model)", "teacher"),
        ("peak of a step", "step"),
    ):
        if name == "teacher" and not any(memory.teacher for memory in memories):
            continue
        style = "bold" if name == "step" else None
        table.add_row(label, *(_gib(getattr(memory, name)) for memory in memories), style=style)
    cuts = [found.memory.cut for found in estimates]
    if any(cuts):
        table.add_row("peak of the first cut, with refit", MISSING, *(_gib(cut) for cut in cuts))
    return table


def _gib(value: float) -> str:
    return f"{value / _GIB:.2f}" if value < 10 * _GIB else f"{value / _GIB:.1f}"


def _gpus(estimate: Estimate) -> Table:
    table = plain_table("GPU", "has, GiB", "needs", "fits", "s a step", "after")
    for fit in estimate.gpus:
        mark = Text("\N{CHECK MARK}", "green") if fit.fits else Text("\N{BALLOT X}", "red")
        seconds = (significant(fit.seconds, 2), significant(fit.seconds_after, 2)) if fit.fits else (MISSING, MISSING)
        needs = f"{fit.needed / _GIB:.1f}{'*' if fit.dtype != estimate.settings['dtype'] else ' '}"
        table.add_row(fit.gpu, f"{fit.usable / _GIB:.1f}", needs, mark, *seconds)
    return table


def _remedies(estimate: Estimate) -> Iterator[str]:
    """Lines with the options that make the run fit, GPUs with the same options together."""
    by_remedy: dict[str | None, list[str]] = {}
    for fit in estimate.gpus:
        if not fit.fits:
            by_remedy.setdefault(fit.remedy, []).append(fit.gpu)
    for remedy, gpus in reversed(by_remedy.items()):
        how = "No tried option makes it fit" if remedy is None else f"It fits with {remedy}"
        yield f"{how}: {', '.join(gpus)}."


def _lines(estimates: Sequence[Estimate]) -> Iterator[str]:
    from loraprune.measure.estimation.gpus import CONTEXT, FRAGMENTED, UTILIZATION

    first = estimates[0]
    if any(abs(found.ratio - found.asked) > 0.0005 for found in estimates):
        yield "Ratios differ from the requested ones, because head counts and FFN widths come in steps."
    yield from dict.fromkeys(note for found in estimates for note in found.notes)
    if any(fit.dtype != first.settings["dtype"] for fit in first.gpus):
        yield "* Without bfloat16, this GPU trains in 32 bits."
    yield (
        f"Estimates for full rows. Memory is in GiB; a GPU has what its driver reports, minus {CONTEXT:g} GiB for CUDA "
        f"and {100 * FRAGMENTED:.0f} % for fragmentation. Times assume {100 * UTILIZATION:.0f} % of the peak and were "
        "not measured. See docs/planning.md."
    )
