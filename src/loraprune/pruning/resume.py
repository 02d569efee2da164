"""The state of a pruning run in a Trainer's checkpoint, for resuming an interrupted run."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loraprune.importance.criterion_config import OwnCriterion
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.pst import PstRun
from loraprune.pruning.run import PruningRun
from loraprune.record.atomic import write_text

if TYPE_CHECKING:
    import torch
    from torch import nn

STATE_FILE = "loraprune_state.json"
TENSOR_FILE = "loraprune_state.safetensors"
SET_ASIDE = "diverged"
ADAPTER_FILE = "adapter_model.safetensors"
NEEDED_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", ADAPTER_FILE, TENSOR_FILE)
"""Files that a run needs to be resumed."""

logger = logging.getLogger("loraprune")
_FORMAT = 1


def run_values(run: PruningRun, further: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a run's state: configuration, progress, and ``further`` values."""
    return {
        "format": _FORMAT,
        "config": run.config.to_saved(),
        "total_steps": run.total_steps,
        **run.values(),
        "cuts": [asdict(record) for record in run.records],
        **further,
        "phases": dict(run.phases.seconds),
    }


def save_state(
    run: PruningRun,
    tensors: dict[str, torch.Tensor],
    folder: Path,
    history: list[dict[str, Any]],
    skipped_steps: list[int],
) -> None:
    """Write the state of a run, history and skipped steps into a checkpoint folder.

    The JSON file is written last, atomically: a checkpoint without it is not complete.
    """
    save_file(tensors, folder / TENSOR_FILE)
    state = run_values(run, {"history": history, "skipped_steps": skipped_steps})
    # Options may be NumPy numbers, for example from a sweep.
    write_text(folder / STATE_FILE, json.dumps(state, default=lambda value: value.item()))


def set_aside_(checkpoint: Path) -> None:
    """Rename a checkpoint, if there is one, so that no run resumes from it: the step after it had NaN or Inf."""
    if checkpoint.is_dir():
        checkpoint.rename(checkpoint.with_name(checkpoint.name.replace("checkpoint", SET_ASIDE)))


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = _complete(run_dir)
    return max(found)[1] if found else None


def usable_checkpoint(run_dir: Path) -> Path:
    """Return the newest checkpoint that a run can resume from; log the faults of newer ones.

    Raises:
        ValueError: there is none.
    """
    faults = []
    for _, path in sorted(_complete(run_dir), reverse=True):
        fault = _fault(path)
        if fault is None:
            return path
        logger.warning("warning: %s is not used: %s.", path, fault)
        faults.append(f"{path.name}: {fault}")
    raise ValueError(
        f"The run cannot resume from any saved state in {run_dir} ({'; '.join(faults)}). Start anew with --overwrite."
    )


def _complete(run_dir: Path) -> list[tuple[int, Path]]:
    """Return steps and folders of the checkpoints that have the state of pruning."""
    return [
        (int(path.name.rpartition("-")[2]), path)
        for path in run_dir.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE_FILE).is_file()
    ]


def _fault(checkpoint: Path) -> str | None:
    """Describe what is missing, damaged or not finite in a checkpoint; None if nothing is."""
    for name in NEEDED_FILES:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        return f"{path.name} is damaged"
            elif path.suffix == ".safetensors":
                tensors = load_file(path)
                if path.name == ADAPTER_FILE and not all(bool(value.isfinite().all()) for value in tensors.values()):
                    return f"{path.name} contains NaN or Inf"
        except (ValueError, OSError, zipfile.BadZipFile, SafetensorError):
            return f"{path.name} is damaged"
    # Older versions also saved a state at a divergence.
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if int(checkpoint.name.rpartition("-")[2]) in state.get("skipped_steps", ()):
        return "it was saved after a step with NaN or Inf"
    return None


def read_values(folder: Path, config: PruningConfig) -> dict[str, Any]:
    """Read the values that :func:`save_state` wrote for a run with the same configuration.

    Raises:
        FileNotFoundError: the folder has no state of a pruning run.
        ValueError: the run was started with another pruning configuration.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        last = last_checkpoint(folder) if folder.is_dir() else None
        inside = "" if last is None else f" Name a checkpoint in it, such as {last}."
        raise FileNotFoundError(f"{folder} has no state of a pruning run ({STATE_FILE} is missing).{inside}")
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_same_config(state, config, of=f"The run in {folder.parent}", otherwise=", or start anew with --overwrite")
    return state


def widths_begun_with(folder: Path) -> str | None:
    """Return the widths that a checkpoint's run was started with, or None.

    A resumed run uses them again: widths for a speed-up come from measured times, which differ from run to run.
    """
    path = folder / STATE_FILE
    found = json.loads(path.read_text(encoding="utf-8"))["config"].get("widths") if path.is_file() else None
    return None if found is None else str(found)


def check_same_config(
    values: Mapping[str, Any], config: PruningConfig, *, of: str = "The run", otherwise: str = ""
) -> None:
    """Check that a state belongs to a run with the same configuration.

    Raises:
        ValueError: it does not; the message lists the differences.
    """
    given = dict(values["config"])
    if isinstance(config.criterion, OwnCriterion) and given["criterion"] == config.criterion_name:
        given["criterion"] = config.criterion.criterion  # only the name is in the file
    saved = PruningConfig.from_saved(given)
    if saved == config:
        return
    before, now = saved.flat(), config.flat()
    changed = ", ".join(f"{key}: {before[key]} -> {now[key]}" for key in before if before[key] != now[key])
    raise ValueError(
        f"{of} was started with other pruning options ({changed}). Resume it with the same options{otherwise}."
    )


def restore_(
    model: nn.Module, folder: Path, config: PruningConfig
) -> tuple[PruningRun, list[dict[str, Any]], list[int]]:
    """Restore the structure and the repaired weights of a checkpoint in an unpruned model, in place.

    With PST, the masks are set when the run begins.

    Call it before you build the Trainer; the Trainer then loads adapter, optimizer and data position from the same
    folder.

    Returns:
        The run to resume, its history, and its skipped steps.

    Raises:
        FileNotFoundError: the folder has no state of a pruning run.
        ValueError: the run was started with another pruning configuration or model.
    """
    values = read_values(folder, config)
    tensors = load_file(folder / TENSOR_FILE)
    run = run_class(config).restored(model, config, values, tensors)
    return run, values["history"], values["skipped_steps"]


def run_class(config: PruningConfig) -> type[PruningRun]:
    """Return the class of run for a configuration: one that cuts groups, or one that sets weights to zero."""
    return PstRun if config.unstructured else GroupRun


def new_run(model: nn.Module, config: PruningConfig) -> PruningRun:
    """Make a new run."""
    return run_class(config).of(model, config)
