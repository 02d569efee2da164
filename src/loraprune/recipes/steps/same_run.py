"""Options and data of a run, saved in its checkpoints, to check that a resumed run has the same."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loraprune.processes.ranks import num_processes
from loraprune.recipes.steps.goals import GOALS
from loraprune.recipes.steps.record import training_settings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loraprune.recipes.steps.prepared import PreparedTraining

_STATE_FILE = "loraprune_run.json"

_ROWS_LOOKED_AT = 64

_SHARED_OUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")
"""Options that may change together with the number of processes."""


def _facts(prepared: PreparedTraining) -> dict[str, Any]:
    """Return training arguments and a fingerprint of the data, as plain values."""
    training = training_settings(prepared.arguments, prepared.max_length)
    share = 0.0 if prepared.teacher is None else prepared.teacher.share
    options = prepared.options
    training |= {name: getattr(options, name) for name in ("eval_steps", "early_stopping_patience", "load_best")}
    facts: dict[str, Any] = {**training, "distill": share, "data": rows_fingerprint(prepared.train_rows)}
    goals = {name: value for name in GOALS if (value := getattr(prepared.options, name)) is not None}
    return facts | {"processes": num_processes(), "goals": goals}


def _by_steps(facts: dict[str, Any]) -> dict[str, Any]:
    """Replace batch size, accumulation and processes by the number of sequences in a step."""
    sizes = [facts[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps") if name in facts]
    others = {name: value for name, value in facts.items() if name not in _SHARED_OUT}
    return others | {"sequences in a step": math.prod((*sizes, facts.get("processes", 1)))}


def rows_fingerprint(rows: Dataset) -> str:
    """Return a fingerprint of training rows: their number, and a hash of a sample from beginning to end."""
    step = max(1, len(rows) // _ROWS_LOOKED_AT)
    some = rows.with_format("arrow")[list(range(0, len(rows), step))].to_pylist()
    return f"{len(rows)} rows, {hashlib.sha256(repr(some).encode()).hexdigest()[:12]}"


class RememberRun(TrainerCallback):
    """Writes the options and data of the run into each checkpoint."""

    def __init__(self, prepared: PreparedTraining) -> None:
        self._facts = _facts(prepared)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write into the checkpoint that the Trainer has written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            (folder / _STATE_FILE).write_text(json.dumps(self._facts), encoding="utf-8")


def check_same_run(checkpoint: Path, prepared: PreparedTraining) -> None:
    """Check that a resumed run has the data and the training arguments that it was started with.

    Checkpoints of older versions do not have these; they pass.

    Raises:
        ValueError: it does not; the message lists the differences.
    """
    path = checkpoint / _STATE_FILE
    if prepared.options.allow_changes or not path.is_file():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), _facts(prepared)
    if before.get("processes", 1) != now["processes"]:
        before, now = _by_steps(before), _by_steps(now)
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        raise ValueError(
            f"The interrupted run was started differently ({', '.join(changed)}). Resume it with the same data and "
            "options, accept the new ones with --allow-changes, or start anew with --overwrite."
        )


class TakeNewRate(TrainerCallback):
    """Sets the learning rate of a resumed run in optimizer and schedule, which the Trainer loads with the old one."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the learning rate; the schedule continues at its step."""
        groups, schedule = kwargs["optimizer"].param_groups, kwargs["lr_scheduler"]
        schedule.base_lrs = [args.learning_rate] * len(groups)
        for number, group in enumerate(groups):
            shape = schedule.lr_lambdas[number] if hasattr(schedule, "lr_lambdas") else lambda step: 1.0
            group["initial_lr"], group["lr"] = args.learning_rate, args.learning_rate * shape(schedule.last_epoch)
            if group["weight_decay"]:
                group["weight_decay"] = args.weight_decay
        schedule._last_lr = [group["lr"] for group in groups]
