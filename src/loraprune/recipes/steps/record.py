"""What the record of a run says of its options: as a recipe that ``--config`` takes, and as settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from loraprune.pruning.config import PruningConfig
from loraprune.record.run_record import plain
from loraprune.tasks.lora import LoraOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainingArguments

    from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedTraining

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

OF_DATA = ("answers_only", "split", "data_name", "eval_split", "eval_sequences", "dtype")
"""Options on how data is read, and how the result is saved; which data it is, the user says."""

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
    config = prepared.oneshot
    values: dict[str, Any] = {"ratio": prepared.ratio} if config.structured else {"sparsity": config.sparsity}
    values["criterion"] = config.name
    if config.structured:
        values |= {"allocation": config.value("allocation"), "repair": config.value("repair")}
    values |= {
        "damping": config.damping,
        "calibration_sequences": config.calibration_sequences,
        "max_length": prepared.max_length,
        "seed": config.seed,
    }
    further = {name: value for name, value in _changed(config).items() if name not in values}
    return _stated({**values, **further, **_changed(prepared.options, only=OF_DATA)})


def _pruning(config: PruningConfig) -> dict[str, Any]:
    """What is pruned: the options that matter most, and those that are not the default."""
    stated = {
        name: config.criterion_name if name == "criterion" else getattr(config, name)
        for name in ALWAYS_STATED
        if not config.unstructured or name in ("ratio", "criterion")
    }
    changed = _changed(config, without=("seed", "pst", "compresso", *stated))
    if config.unstructured:
        changed.pop("repair", None)
    pst = {f"pst_{name}": value for name, value in _changed(config.pst).items()}
    compresso = {
        "pruning_prompt" if name == "prompt" else f"compresso_{name}": value
        for name, value in _changed(config.compresso).items()
    }
    return {**stated, **changed, **pst, **compresso}


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
        "lora_r": given.r,
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
        if isinstance(value, Enum):
            value = value.value
        value = plain(value)
        if value is not None and isinstance(value, (bool, int, float, str, list, dict)):
            stated[name] = value
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
        "training": training_settings(prepared.arguments, prepared.max_length),
    }


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
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):  # some are strings, too, that print as SchedulerType.COSINE
        return value.value
    value = plain(value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
