"""The record of a run: its measures, and its options as settings and as a recipe for ``--config``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from loraprune.options.field import option_name
from loraprune.processes.ranks import num_processes
from loraprune.pruning.config import PruningConfig
from loraprune.record.codec import encode
from loraprune.record.provenance import machine_description, timestamp, versions
from loraprune.record.pruning_course import DimensionRecord, TriedWidths
from loraprune.record.run_record import Machine, RunMetrics, RunRecord, Settings
from loraprune.structure.widths import widest
from loraprune.tasks.options import LoraOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainingArguments

    from loraprune.allocation.measured_widths import WidthTrial
    from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedRun, PreparedTraining
    from loraprune.record.report_data import ReportData
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

ALWAYS_STATED = (
    "ratio",
    "criterion",
    "allocation",
    "prune_start",
    "prune_end",
    "cuts",
    "repair",
    "calibration_sequences",
)
"""Options of pruning that a recipe always states, even at their defaults."""

ONESHOT_STATED = (
    "ratio",
    "sparsity",
    "criterion",
    "allocation",
    "repair",
    "damping",
    "norm_steps",
    "calibration_sequences",
    "seed",
)
"""Options that the recipe of a run without training always states."""

OF_DATA = (
    *("answers_only", "bos", "split", "data_name", "columns", "streaming", "stopping_strategy"),
    *("eval_split", "eval_sequences", "dtype", "distill"),
)
"""Options of a recipe for reading data and saving the result; the data itself is not in the recipe."""

_STATED = (bool, int, float, str, list, tuple, dict, Enum, np.generic)
"""Types that a recipe can state."""

OF_THE_MACHINE = (
    "output_dir",
    "report_to",
    "run_name",
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "use_cpu",
    "disable_tqdm",
    "dataloader_num_workers",
)
"""Training arguments that do not affect the result."""


def record_of(
    prepared: PreparedRun, settings: Mapping[str, Any], recipe: Mapping[str, Any], metrics: RunMetrics, plan: Plan
) -> RunRecord:
    """Make the record of a finished run.

    Args:
        prepared: the run.
        settings: settings of the run, by part.
        recipe: recipe of the run.
        metrics: measures and history of the run.
        plan: remaining groups.
    """
    return RunRecord(
        base_model=prepared.name,
        task=prepared.task.name,
        created=timestamp(),
        command=prepared.options.command,
        settings=Settings(**encode(settings)),
        metrics=metrics,
        plan=plan.kept,
        versions=versions(),
        machine=Machine(**machine_description()),
        recipe=recipe,
        base_pruning=prepared.history(),
    )


def with_phases(record: RunRecord, report: ReportData, seconds: Mapping[str, float]) -> tuple[RunRecord, ReportData]:
    """Set the seconds of the phases in the record and the report of a run."""
    phases = dict(seconds)
    return replace(record, metrics=replace(record.metrics, phases=phases)), replace(report, phases=phases)


def dimensions_of(structure: Structure) -> tuple[DimensionRecord, ...]:
    """Describe a model's prunable dimensions for the record, so that its plan is readable without the model."""
    return tuple(
        DimensionRecord(
            name=dimension.name,
            kind=dimension.kind,
            layer=None if dimension.spans_blocks else dimension.layer,
            groups=dimension.num_groups,
        )
        for dimension in structure
    )


def tried_widths(structure: Structure, trials: Sequence[WidthTrial]) -> tuple[TriedWidths, ...]:
    """Describe tried widths for the record."""
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    return tuple(
        TriedWidths(
            widths=dict(trial.widths),
            of=dense,
            divergence=trial.divergence if math.isfinite(trial.divergence) else None,
            even=trial.even,
        )
        for trial in trials
    )


def training_recipe(prepared: PreparedTraining) -> dict[str, Any]:
    """Return the recipe of a run of ``loraprune prune`` or ``loraprune recover``."""
    if prepared.recovery:
        pruning = {"keep_zeros": bool(prepared.keep_zeros)} | _changed(prepared.pruning, only=("max_skipped_steps",))
    else:
        pruning = _pruning(prepared.pruning)
    base = {"quantization": prepared.options.quantization, "keep_quantized": prepared.options.keep_quantized or None}
    return _stated(
        {**pruning, **base, **_lora(prepared), **_training(prepared), **_changed(prepared.options, only=OF_DATA)}
    )


def oneshot_recipe(prepared: PreparedOneshot) -> dict[str, Any]:
    """Return the recipe of a run of ``loraprune oneshot``."""
    flat = prepared.oneshot.flat()
    stated = [name for name in ONESHOT_STATED if name in flat]
    values = {name: flat[name] for name in stated} | {"max_length": prepared.max_length}
    further = {name: value for name, value in prepared.oneshot.options_off_default().items() if name not in values}
    return _stated(_by_widths({**values, **further, **_changed(prepared.options, only=OF_DATA)}))


def _pruning(config: PruningConfig) -> dict[str, Any]:
    """Return the most important options of pruning, and all others that are not at their defaults."""
    flat, always = config.flat(), ("ratio", "criterion") if config.unstructured else ALWAYS_STATED
    changed = config.options_off_default()
    for name in ("seed", "pst", "compresso", *(["repair"] if config.unstructured else [])):
        changed.pop(name, None)
    criterion = config.criterion
    nested = _changed(criterion) if criterion.nested else {}
    own = {
        option_name(field, criterion.name): nested[field.name] for field in fields(criterion) if field.name in nested
    }
    return _by_widths({name: flat[name] for name in always} | changed | own)


def _by_widths(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the ratio if widths are given."""
    return {name: value for name, value in values.items() if name != "ratio" or values.get("widths") is None}


def _lora(prepared: PreparedTraining) -> dict[str, Any]:
    """Return our options of the adapter, or those that peft's configuration corresponds to."""
    given = prepared.lora_options
    if given is None:
        targets = prepared.lora.target_modules
        given = LoraOptions(
            r=prepared.lora.r,
            alpha=prepared.lora.lora_alpha,
            dropout=prepared.lora.lora_dropout,
            target_modules=None if targets is None or isinstance(targets, str) else sorted(targets),
        )
    return {
        "lora_r": prepared.lora.r,
        "lora_alpha": given.alpha,
        "lora_dropout": given.dropout,
        "lora_target_modules": None if given.target_modules is None else list(given.target_modules),
        "lora_experts": given.experts or None,
    }


def _training(prepared: PreparedTraining) -> dict[str, Any]:
    """Return the training arguments that affect the result, and all others that the user set."""
    values = training_settings(prepared.arguments, prepared.max_length)
    values.pop("num_train_epochs" if values["max_steps"] > 0 else "max_steps")
    return values | {name: value for name, value in prepared.given.items() if name not in (*values, *OF_THE_MACHINE)}


def _changed(config: Any, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields that are not at their defaults."""
    found = {}
    for field in fields(config):
        if field.name in without or (only and field.name not in only) or field.default is MISSING:
            continue
        value = getattr(config, field.name)
        if value != field.default:
            found[field.name] = value
    return found


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to plain ones and drop unknown ones; dimensions and layers as on the command line."""
    stated = {}
    for name, value in values.items():
        if name in ("dimensions", "keep_layers") and value is not None:
            value = ",".join(map(str, value))
        plain = encode(value)
        if plain is not None and isinstance(value, _STATED):
            stated[name] = plain
    return stated


# Settings of a run as plain values, for its record.

SHAPING = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "bf16",
    "gradient_checkpointing",
    "seed",
)
"""Training arguments that affect the result."""


def run_settings(prepared: PreparedTraining) -> dict[str, Any]:
    """Return the settings of pruning or recovery, adapter and training."""
    pruning: dict[str, Any] = {"pruning": prepared.pruning.to_saved()}
    if prepared.recovery:
        pruning = {
            "recovery": {"keep_zeros": prepared.keep_zeros, "max_skipped_steps": prepared.pruning.max_skipped_steps}
        }
    if prepared.base_quantized:
        pruning["base"] = {
            "quantization": prepared.options.quantization or "as passed in",
            "keep_quantized": prepared.options.keep_quantized,
        }
    return {
        **pruning,
        "lora": {
            "r": prepared.lora.r,
            "alpha": prepared.lora.lora_alpha,
            "dropout": prepared.lora.lora_dropout,
            "target_modules": _targets(prepared.lora),
            **_further(prepared.lora),
        },
        **_distillation(prepared),
        "training": training_settings(prepared.arguments, prepared.max_length) | _processes(prepared),
    }


def _processes(prepared: PreparedTraining) -> dict[str, int]:
    """Number of processes that shared the run, if it was not one, and how they shared weights and states."""
    if num_processes() == 1:
        return {}
    found, fsdp, zero = {"processes": num_processes()}, prepared.options.fsdp, prepared.arguments.deepspeed
    found |= {"fsdp": fsdp} if fsdp is not None else {}
    return found | ({"zero_stage": zero["zero_optimization"]["stage"]} if isinstance(zero, dict) else {})


def _distillation(prepared: PreparedTraining) -> dict[str, Any]:
    """Return the settings of distillation, if there is a teacher."""
    teacher = prepared.teacher
    return {} if teacher is None else {"distillation": {"share": teacher.share, "teacher": teacher.source.name}}


def _targets(lora: LoraConfig) -> list[str] | str:
    targets = lora.target_modules or []
    return targets if isinstance(targets, str) else sorted(targets)


def _further(lora: LoraConfig) -> dict[str, list[str]]:
    """Return further trained modules and parameters."""
    found = {name: getattr(lora, name, None) for name in ("modules_to_save", "target_parameters")}
    return {name: sorted(set(values)) for name, values in found.items() if values}


def training_settings(arguments: TrainingArguments, max_length: int | None) -> dict[str, Any]:
    """Return the training arguments that affect the result, with the maximum length if rows are text."""
    values = {name: getattr(arguments, name, None) for name in SHAPING}
    values["max_length"] = max_length
    if max_length is None:
        del values["max_length"]
    return {name: encode(value) for name, value in values.items()}
