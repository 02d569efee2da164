"""``loraprune compare-criteria``: which groups several criteria would remove, and how far they agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from loraprune.cli.console import results_console
from loraprune.cli.options import SWITCH, Option, fields_of, names, numbers, option
from loraprune.cli.prune import PRUNE_OPTIONS, settle_quantization
from loraprune.cli.training_options import ARCHITECTURE, LORA, Invocation, TrainingCommand, sources
from loraprune.processes.ranks import from_main, join
from loraprune.record.atomic import check_file, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from loraprune.recipes.compare_criteria import CriteriaComparison


# The options of ``loraprune compare-criteria`` that are not training options, declared once.

_DATA = (
    *("data", "tokenizer", "image_processor", "split", "data_name"),
    *("answers_only", "bos", "trust_remote_code", "revision"),
)
"""Options of a training run that say what goes in; nothing of a comparison is measured or resumed."""

SHARED = (
    "dimensions",
    "keep_layers",
    "average_decay",
    "average_bias_correction",
    "lora_form",
    "taylor_form",
    "group_reduction",
    "offload_grads",
)
"""Options of ``loraprune prune`` that mean the same here."""

QUANTIZED = ("load_in_8bit", "load_in_4bit", "quantization")

_GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        *(item for item in sources("") if item.name in _DATA),
        option("output", "call", "JSON file of the agreement (none)", type=Path),
    ),
    "comparison": (
        option("criteria", "pruning", "criteria, at least two; the first is compared with the others first "
               "(lora,fisher,taylor)", type=names),
        option("ratios", "pruning", "sparsity ratios (0.1,0.2,0.3,0.4,0.5)", type=numbers),
        option("steps", "pruning", "training steps that the criteria watch (20)", type=int),
        option("allocation", "pruning", "uniform: every criterion removes equally many groups of each layer; "
               "balanced, global: as many as its scores say (uniform)"),
        *(PRUNE_OPTIONS[name] for name in SHARED if name in PRUNE_OPTIONS),
        ARCHITECTURE,
    ),
    "quantized base": tuple(PRUNE_OPTIONS[name] for name in QUANTIZED if name in PRUNE_OPTIONS),
    "LoRA": LORA,
    "what is shown": (option("quiet", "call", "results only", **SWITCH),),
}  # fmt: skip

_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}

_DESCRIPTION = """Tune a model for some steps while several criteria watch, and show which share of the groups that one
would remove the other would remove too, by kind of dimension and sparsity ratio. Nothing is removed."""

CAPTION = """Share of the removed groups that both criteria remove, mean over the layers; in brackets what groups
drawn at random would have in common."""


def compare_criteria_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


def _work(asked: Invocation) -> None:
    from loraprune.cli.progress import TrainingProgress
    from loraprune.recipes.compare_criteria import ComparisonConfig, compare_criteria
    from loraprune.tasks.options import LoraOptions, RunOptions

    values = asked.values
    output: Path | None = values.get("output")
    join()
    if output is not None:
        from_main(lambda: _check_output(output, values))
    progress = TrainingProgress(asked.console, quiet=asked.quiet, prunes=False)
    try:
        comparison = compare_criteria(
            values["model"],
            values["data"],
            ComparisonConfig(**fields_of(_OPTIONS, values, "pruning")),
            training=asked.training,
            lora=LoraOptions(**fields_of(_OPTIONS, values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(**fields_of(_OPTIONS, values, "run"), command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    console = results_console()
    console.print(agreement_table(comparison))
    console.print(CAPTION, highlight=False, markup=False, soft_wrap=True)
    if output is not None:
        text = json.dumps(comparison.to_json(), indent=2) + "\n"
        from_main(lambda: write_text(output, text))
        console.print(f"Agreement: {output}", highlight=False, markup=False, soft_wrap=True)


def _check_output(output: Path, values: Mapping[str, Any]) -> None:
    read = ("model", "data", "tokenizer", "image_processor", "config", "architecture")
    check_file(
        output,
        example="agreement.json",
        what="agreement of criteria",
        holds=b'"agreement"',
        inputs=[values.get(name) for name in read],
    )


def agreement_table(comparison: CriteriaComparison) -> Table:
    """Pairs of criteria by kind of dimension, and ratios across."""
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
    example="loraprune compare-criteria MODEL --data DATA",
    groups=_GROUPS,
    work=_work,
    settle=settle_quantization,
    needs=("model", "data"),
)

compare_criteria_parser = _COMMAND.help_parser
