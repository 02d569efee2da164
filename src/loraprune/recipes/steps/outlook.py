"""Outlook of a run: a summary shown before it starts, and the output of a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loraprune.display.shown import RunDisplay
from loraprune.display.time_left import StepWork
from loraprune.measure.benchmark.memory import free_memory
from loraprune.measure.estimation.this_machine import flops_per_second
from loraprune.processes.ranks import is_main, num_processes
from loraprune.pruning.errors import DryRunError
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
from loraprune.recipes.steps.outlook_cost import ExpectedCost, oneshot_cost, planned_steps, training_cost
from loraprune.recipes.steps.outlook_data import data_facts, row_lengths
from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedTraining
from loraprune.record.numbers import count, duration, file_size, percent
from loraprune.structure.matching_widths import final_candidates, most_even
from loraprune.structure.widths import widest

if TYPE_CHECKING:
    from loraprune.allocation.target import Target
    from loraprune.measure.estimation.result import Estimate
    from loraprune.recipes.steps.prepared import PreparedRun
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.widths import Widths

_SPLITS = {
    "measured": " if split evenly; other splits are tried",
    "balanced": " if split evenly; the split follows importance",
    "global": " if split evenly; layers differ",
}
"""How final widths may differ from those of an even split, by allocation."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Outlook of a run.

    Attributes:
        title: recipe and model.
        facts: labels and texts.
        work: operations of an optimizer step, if known.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    work: StepWork | None = None


def training_outlook(prepared: PreparedTraining) -> Outlook:
    """Return the outlook of a run of ``prune`` or ``recover``."""
    arguments = prepared.arguments
    lengths = row_lengths(prepared.train_rows)
    cost, steps = training_cost(prepared, lengths), planned_steps(prepared)
    ratio = prepared.pruning.target.ratio
    cuts = prepared.pruning.schedule.cut_times(steps, ratio)
    dtype = torch.bfloat16 if arguments.bf16 else prepared.computed_dtype
    name = "recover" if prepared.recovery else "prune"
    return Outlook(
        title=f"{name} {prepared.typed_name}",
        facts=(
            ("model", _model(prepared)),
            ("data", data_facts(prepared, lengths, arguments.per_device_train_batch_size)),
            ("pruning", "" if prepared.recovery else _pruning(prepared, cost)),
            ("cuts", "" if prepared.recovery else _cuts([cut.step for cut in cuts], prepared)),
            ("training", _training(prepared, steps)),
            ("memory", _memory(prepared, cost)),
            ("time", "" if cost is None else _time(prepared, cost.flops(steps, cuts), dtype)),
            ("output", _output(prepared)),
        ),
        work=None if cost is None else cost.work,
    )


def oneshot_outlook(prepared: PreparedOneshot) -> Outlook:
    """Return the outlook of a run of ``oneshot``."""
    lengths = row_lengths(prepared.train_rows)
    cost = oneshot_cost(prepared, lengths)
    return Outlook(
        title=f"oneshot {prepared.typed_name}",
        facts=(
            ("model", _model(prepared)),
            ("data", data_facts(prepared, lengths) if prepared.oneshot.needs_data else "not needed"),
            ("pruning", _oneshot(prepared, prepared.oneshot)),
            ("memory", _memory(prepared, cost)),
            ("time", _time(prepared, cost.flops(0), prepared.computed_dtype)),
            ("output", _output(prepared)),
        ),
    )


def _model(prepared: PreparedRun) -> str:
    structure = prepared.structure
    dtype = str(prepared.computed_dtype).removeprefix("torch.")
    base = f" with a base in {prepared.options.quantization}" if prepared.options.quantization else ""
    where = "the CPU" if prepared.computing.type == "cpu" else str(prepared.computing)
    processes = f", {num_processes()} processes" if num_processes() > 1 else ""
    parameters = f"{count(structure.num_parameters)} parameters"
    return f"{structure.spec.model_type}, {parameters}; {dtype}{base} on {where}{processes}"


def _pruning(prepared: PreparedTraining, cost: ExpectedCost | None) -> str:
    """Describe amount and method of pruning."""
    pruning, structure = prepared.pruning, prepared.structure
    if pruning.unstructured:
        return f"{percent(pruning.target.ratio)} of the weights that LoRA adapts become zero (criterion pst)"
    estimate = None if cost is None else cost.estimate
    how = f"criterion {pruning.criterion_name}, allocation {pruning.target.allocation}, repair {pruning.repair.name}"
    amount = f"ratio {pruning.target.ratio:.3g}: {count(pruning.target.ratio * structure.prunable_parameters)}"
    widths = "" if estimate is None else _widths(estimate)
    return f"{amount} of {count(structure.prunable_parameters)} prunable parameters removed{widths}; {how}"


def _widths(estimate: Estimate) -> str:
    """Format the widths before and after; with an uneven split, these are means."""
    before, after = estimate.before, estimate.after
    changed = [
        f"{_called(kind)} {_span(before.widths[kind])} to {_span(after.widths[kind])}"
        for kind in before.widths
        if before.widths[kind] != after.widths[kind]
    ]
    if before.blocks != after.blocks:
        changed.append(f"blocks {before.blocks} to {after.blocks}")
    return f" (about {', '.join(changed)})" if changed else ""


def _called(kind: str) -> str:
    return {"heads": "KV heads", "hidden": "hidden size"}.get(kind, kind.replace("_", " "))


def _span(widths: tuple[int, int]) -> str:
    return f"{widths[0]:,}" if widths[0] == widths[1] else f"{widths[0]:,}-{widths[1]:,}"


def _cuts(steps: list[int], prepared: PreparedTraining) -> str:
    """List the steps of the cuts."""
    what = "masks" if prepared.unstructured else "cuts"
    if not steps:
        return "none"
    if steps == [0]:
        return "all before the first step"
    if len(steps) == 1:
        return f"1, after step {steps[0]}"
    listed = ", ".join(map(str, steps)) if len(steps) <= 6 else f"{steps[0]} to {steps[-1]}"
    return f"{len(steps)} {what}, after steps {listed}"


def _training(prepared: PreparedTraining, steps: int) -> str:
    arguments = prepared.arguments
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * num_processes()
    warm_up = arguments.warmup_steps
    shown = f"{100 * warm_up:.0f} % of the steps" if 0 < warm_up < 1 else f"{warm_up:g} steps"
    schedule = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    parts = [
        f"{steps:,} step{'' if steps == 1 else 's'} of {rows} row{'' if rows == 1 else 's'}",
        f"learning rate {arguments.learning_rate:g} ({schedule}, warm-up {shown})",
        f"LoRA rank {prepared.lora.r}",
    ]
    if prepared.teacher is not None:
        parts.append(f"{100 * prepared.teacher.share:.0f} % of the loss follows {prepared.teacher.source.name}")
    return ", ".join(parts)


def _oneshot(prepared: PreparedOneshot, config: OneshotConfig | SparseConfig) -> str:
    """Describe amount and method of pruning without training."""
    if isinstance(config, SparseConfig):
        return f"sparsity {config.pattern} of the blocks' linear layers, criterion {config.name}; shapes stay"
    how = f"criterion {config.name}, allocation {config.target.allocation or 'uniform'}, repair {config.repair.name}"
    if prepared.norm_steps:
        how += f", then {prepared.norm_steps} steps on the norms"
    return f"{_amount(prepared.structure, config.target)}; {how}"


def _amount(structure: Structure, target: Target) -> str:
    """State the removed share and the widths: those given, or those of an even split and how others may come."""
    legal, ratio = target.legal_widths(structure), target.ratio
    before = {kind: widest(structure, kind) for kind in structure.kinds}
    if len(legal.only) > 1:
        return "the best of these widths: " + ", or ".join(_changes(before, widths) for widths in legal.only)
    after = most_even(structure, final_candidates(structure, before, ratio, legal), ratio, legal)
    changes = f"{_changes(before, after)}{'' if legal.only else _SPLITS.get(target.allocation or 'uniform', '')}"
    removed = f"{count(ratio * structure.prunable_parameters)} of {count(structure.prunable_parameters)}"
    return f"ratio {ratio:.3g}: {removed} prunable parameters removed ({changes})"


def _changes(before: Widths, after: Widths) -> str:
    changed = [f"{_called(kind)} {before[kind]:,} to {after[kind]:,}" for kind in before if before[kind] != after[kind]]
    return ", ".join(changed) or "no change"


def _memory(prepared: PreparedRun, cost: ExpectedCost | None) -> str:
    if cost is None:
        return "not estimated for this model"
    free = free_memory(prepared.computing)
    short = "; that is not enough" if cost.memory > free else ""
    return f"about {file_size(cost.memory)}, {file_size(free)} are free{short}"


def _time(prepared: PreparedRun, flops: float, dtype: torch.dtype) -> str:
    seconds = flops / flops_per_second(prepared.computing, dtype)
    return f"about {duration(seconds)} on this machine, without loading and saving"


def _output(prepared: PreparedRun) -> str:
    options = prepared.options
    if options.output is None:
        return "none: the result stays in memory"
    dtype = str(prepared.saved_dtype).removeprefix("torch.")
    replaced = ", replaces what is there" if options.overwrite and options.output.exists() else ""
    return f"{options.output} ({dtype}{replaced})"


def show_outlook(prepared: PreparedTraining | PreparedOneshot, display: RunDisplay) -> Outlook | None:
    """Show the outlook of a run, if progress is shown or the run is a dry run.

    Raises:
        DryRunError: it is a dry run, which ends here.
    """
    dry, outlook = prepared.options.dry_run, None
    if is_main() and (dry or not display.quiet):
        outlook = training_outlook(prepared) if isinstance(prepared, PreparedTraining) else oneshot_outlook(prepared)
        display.facts(outlook.title, outlook.facts, asked=dry)
    if dry:
        raise DryRunError("Dry run: all checks passed, and nothing was done.")
    return outlook
