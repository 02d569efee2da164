"""The record of a run: its measures and course, and its options as settings and as a recipe that ``--config`` takes."""

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
from loraprune.record.run_record import DimensionRecord, Machine, RunMetrics, RunRecord, Settings, TriedWidths
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
"""Options of pruning that a recipe holds even where they are the default."""

ONESHOT_STATED = (
    "ratio",
    "sparsity",
    "criterion",
    "allocation",
    "repair",
    "damping",
    "calibration_sequences",
    "seed",
)
"""The same for a run without training."""

OF_DATA = (
    *("answers_only", "bos", "split", "data_name", "columns", "streaming", "stopping_strategy"),
    *("eval_split", "eval_sequences", "dtype", "distill"),
)
"""Options on how data is read, and how the result is saved; which data it is, the user says."""

_STATED = (bool, int, float, str, list, tuple, dict, Enum, np.generic)
"""What a recipe can say."""

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
"""Training arguments that do not shape the result."""


def record_of(
    prepared: PreparedRun, settings: Mapping[str, Any], recipe: Mapping[str, Any], metrics: RunMetrics, plan: Plan
) -> RunRecord:
    """The record of a run that is over.

    Args:
        prepared: that was done.
        settings: of the run, by part.
        recipe: of the run.
        metrics: its measures and course.
        plan: groups that stayed.
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
    """Record and report of a run with the seconds of its phases as they are now."""
    phases = dict(seconds)
    return replace(record, metrics=replace(record.metrics, phases=phases)), replace(report, phases=phases)


def dimensions_of(structure: Structure) -> tuple[DimensionRecord, ...]:
    """What the record keeps of a model's prunable dimensions, so that a plan can be read without the model."""
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
    """What the record keeps of widths that were tried."""
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
    """Options of ``loraprune prune`` and ``loraprune recover``."""
    if prepared.recovery:
        pruning = {"keep_zeros": bool(prepared.keep_zeros)} | _changed(prepared.pruning, only=("max_skipped_steps",))
    else:
        pruning = _pruning(prepared.pruning)
    base = {"quantization": prepared.options.quantization, "keep_quantized": prepared.options.keep_quantized or None}
    return _stated(
        {**pruning, **base, **_lora(prepared), **_training(prepared), **_changed(prepared.options, only=OF_DATA)}
    )


def oneshot_recipe(prepared: PreparedOneshot) -> dict[str, Any]:
    """Options of ``loraprune oneshot``."""
    flat = prepared.oneshot.flat()
    stated = [name for name in ONESHOT_STATED if name in flat]
    values = {name: flat[name] for name in stated} | {"max_length": prepared.max_length}
    further = {name: value for name, value in prepared.oneshot.options_off_default().items() if name not in values}
    return _stated(_by_widths({**values, **further, **_changed(prepared.options, only=OF_DATA)}))


def _pruning(config: PruningConfig) -> dict[str, Any]:
    """What is pruned: the options that matter most, and those that are not the default."""
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
    """Without the ratio where widths say how much goes."""
    return {name: value for name, value in values.items() if name != "ratio" or values.get("widths") is None}


def _lora(prepared: PreparedTraining) -> dict[str, Any]:
    """The adapter: as it was asked for, or of peft's own configuration what an option can say."""
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
    """What shapes the result, and what the user said beyond."""
    values = training_settings(prepared.arguments, prepared.max_length)
    values.pop("num_train_epochs" if values["max_steps"] > 0 else "max_steps")
    return values | {name: value for name, value in prepared.given.items() if name not in (*values, *OF_THE_MACHINE)}


def _changed(config: Any, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, Any]:
    """Fields that are not at their default."""
    found = {}
    for field in fields(config):
        if field.name in without or (only and field.name not in only) or field.default is MISSING:
            continue
        value = getattr(config, field.name)
        if value != field.default:
            found[field.name] = value
    return found


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """As plain values, without what is unknown; lists of kinds and of layers as the command line has them."""
    stated = {}
    for name, value in values.items():
        if name in ("dimensions", "keep_layers") and value is not None:
            value = ",".join(map(str, value))
        plain = encode(value)
        if plain is not None and isinstance(value, _STATED):
            stated[name] = plain
    return stated


# The settings of a run as plain values, for its record.

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
"""The training arguments that shape the result."""


def run_settings(prepared: PreparedTraining) -> dict[str, Any]:
    """Pruning or recovery, adapter and training."""
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
    """What tuning followed, where it followed something."""
    teacher = prepared.teacher
    return {} if teacher is None else {"distillation": {"share": teacher.share, "teacher": teacher.source.name}}


def _targets(lora: LoraConfig) -> list[str] | str:
    targets = lora.target_modules or []
    return targets if isinstance(targets, str) else sorted(targets)


def _further(lora: LoraConfig) -> dict[str, list[str]]:
    """What is trained beside the layers, where there is such a thing."""
    found = {name: getattr(lora, name, None) for name in ("modules_to_save", "target_parameters")}
    return {name: sorted(set(values)) for name, values in found.items() if values}


def training_settings(arguments: TrainingArguments, max_length: int | None) -> dict[str, Any]:
    """The training arguments that shape the result; the maximal length where rows are text."""
    values = {name: getattr(arguments, name, None) for name in SHAPING}
    values["max_length"] = max_length
    if max_length is None:
        del values["max_length"]
    return {name: encode(value) for name, value in values.items()}
