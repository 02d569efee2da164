"""``loraprune compare-criteria``: agreement of several criteria on the groups to remove."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from loraprune.cli.console import results_console
from loraprune.cli.options import Option, OptionGroups, by_name, fields_of, names, numbers, option
from loraprune.cli.prune import PRUNE_OPTIONS, settle_quantization
from loraprune.cli.shared_options import CONFIG, FILES, HUB, LENGTH, LORA, OPTIMIZATION, QUIET, TEXTS, data_option
from loraprune.cli.training_options import Invocation, TrainingCommand
from loraprune.data.named import data_places
from loraprune.display.console import print_line
from loraprune.processes.ranks import from_main, join
from loraprune.recipes.comparison_config import ComparisonConfig
from loraprune.record.atomic import check_file, write_text
from loraprune.tasks.options import LoraOptions, RunOptions

if TYPE_CHECKING:
    from rich.table import Table

    from loraprune.recipes.compare_criteria import CriteriaComparison


SHARED = ("dimensions", "keep_layers")
"""Options of ``loraprune prune`` that mean the same here."""

_SHARED_DETAILS = (
    *("taylor_form", "lora_form", "group_reduction", "offload_grads", "average_decay", "average_bias_correction"),
)

_GROUPS: OptionGroups = {
    "most used": (
        data_option("training data"),
        option("output", "call", "JSON file for the figures (default: none)", type=Path, metavar="FILE.json"),
        option("criteria", "pruning", "criteria to compare, at least two (default: lora,fisher,taylor)", type=names),
        option("ratios", "pruning", "ratios to compare at (default: 0.1,0.2,0.3,0.4,0.5)", type=numbers),
        option("steps", "pruning", "training steps to collect scores over (default: 20)", type=int),
        *LENGTH[2:],
        CONFIG,
    ),
    "comparison": (
        *(PRUNE_OPTIONS[name] for name in SHARED),
        option("allocation", "pruning", "how to divide the cut: uniform removes the same share of each layer; balanced "
               "and global follow the scores (default: uniform)"),
    ),
    "data": (*FILES, *TEXTS),
    "training": OPTIMIZATION[:8],
    "LoRA": LORA,
    "quantized base model": tuple(PRUNE_OPTIONS[name] for name in ("load_in_8bit", "load_in_4bit", "quantization")),
    "model": HUB,
    "output": (QUIET,),
}  # fmt: skip

_RARE: OptionGroups = {"details of criteria": tuple(PRUNE_OPTIONS[name] for name in _SHARED_DETAILS)}

_OPTIONS: dict[str, Option] = by_name(_GROUPS, _RARE)

_DESCRIPTION = """Train a model for some steps while several criteria score its groups, and print how many of the groups
that one criterion would remove the others would remove too. The model is not changed."""

CAPTION = (
    "Share of the removed groups that both criteria remove, mean over the layers; in brackets what groups drawn at "
    "random would have in common."
)


def compare_criteria_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


def _configured(values: dict[str, Any]) -> tuple[ComparisonConfig, LoraOptions, RunOptions]:
    """Make the configurations.

    Raises:
        ValueError: a value is not valid, or options exclude each other.
    """
    return (
        ComparisonConfig(**fields_of(_OPTIONS, values, "pruning")),
        LoraOptions(**fields_of(_OPTIONS, values, "lora")),
        RunOptions(**fields_of(_OPTIONS, values, "run")),
    )


def _work(asked: Invocation) -> None:
    from loraprune.display.training import TrainingProgress
    from loraprune.recipes.compare_criteria import compare_criteria

    values = asked.values
    config, lora, options = _configured(values)
    output: Path | None = values.get("output")
    join()
    if output is not None:
        from_main(lambda: _check_output(output, values))
    progress = TrainingProgress(asked.console, quiet=asked.quiet)
    try:
        comparison = compare_criteria(
            values["model"],
            values["data"],
            config,
            training=asked.training,
            lora=lora,
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=replace(options, command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    console = results_console()
    console.print(agreement_table(comparison))
    print_line(console, CAPTION)
    if output is not None:
        text = json.dumps(comparison.to_json(), indent=2) + "\n"
        from_main(lambda: write_text(output, text))
        print_line(console, f"Agreement: {output}", whole=True)


def _check_output(output: Path, values: Mapping[str, Any]) -> None:
    read = ("model", "tokenizer", "image_processor", "config", "architecture")
    check_file(
        output,
        example="agreement.json",
        what="agreement of criteria",
        holds=b'"agreement"',
        inputs=[*data_places(values["data"]), *(values.get(name) for name in read)],
    )


def agreement_table(comparison: CriteriaComparison) -> Table:
    """Return the table: a row for each kind of dimension and pair of criteria, a column for each ratio."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("agreement of", no_wrap=True)
    for ratio in comparison.config.ratios:
        table.add_column(f"{ratio:.3g}", justify="right", no_wrap=True)
    cells: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        cell = "–"
        if row.shared is not None and row.by_chance is not None:
            cell = f"{row.shared:.0%} ({row.by_chance:.0%})"
        cells.setdefault((row.kind, f"{row.first}, {row.second}"), []).append(cell)
    kind = None
    for (now, pair), shown in sorted(cells.items(), key=lambda item: comparison.structure.kinds.index(item[0][0])):
        if now != kind:
            table.add_row(Text(now, style="bold"))
        table.add_row(f"  {pair}", *shown)
        kind = now
    return table


_COMMAND = TrainingCommand(
    name="compare-criteria",
    description=_DESCRIPTION,
    usage="loraprune compare-criteria MODEL --data DATA [options]",
    example="loraprune compare-criteria MODEL --data train.jsonl --criteria fisher,taylor",
    groups=_GROUPS,
    rare=_RARE,
    work=_work,
    settle=settle_quantization,
    check=_configured,
    needs=("model", "data"),
)

compare_criteria_parser = _COMMAND.help_parser
