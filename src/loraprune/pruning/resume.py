"""The state of a pruning run inside a Trainer's checkpoint, so that an interrupted run can go on."""

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
"""What a run cannot be gone on from without."""

logger = logging.getLogger("loraprune")
_FORMAT = 1


def run_values(run: PruningRun, further: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a run's state: configuration, course, and what else there is to tell."""
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

    The JSON file comes last and appears at once: a checkpoint without it is not complete.
    """
    save_file(tensors, folder / TENSOR_FILE)
    state = run_values(run, {"history": history, "skipped_steps": skipped_steps})
    # Options may be numbers of NumPy, as of a sweep.
    write_text(folder / STATE_FILE, json.dumps(state, default=lambda value: value.item()))


def set_aside_(checkpoint: Path) -> None:
    """Rename a checkpoint, where there is one, so that no run goes on from it: the step after it had NaN or Inf."""
    if checkpoint.is_dir():
        checkpoint.rename(checkpoint.with_name(checkpoint.name.replace("checkpoint", SET_ASIDE)))


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = _complete(run_dir)
    return max(found)[1] if found else None


def usable_checkpoint(run_dir: Path) -> Path:
    """The newest checkpoint of a run that can be gone on from; what is wrong with newer ones is logged.

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
        f"No saved state in {run_dir} can be gone on from ({'; '.join(faults)}). Start anew with --overwrite."
    )


def _complete(run_dir: Path) -> list[tuple[int, Path]]:
    """Checkpoints with the state of pruning, by their steps."""
    return [
        (int(path.name.rpartition("-")[2]), path)
        for path in run_dir.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE_FILE).is_file()
    ]


def _fault(checkpoint: Path) -> str | None:
    """What is missing, damaged or not finite in a checkpoint; None where all is well."""
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
                    return f"{path.name} holds NaN or Inf"
        except (ValueError, OSError, zipfile.BadZipFile, SafetensorError):
            return f"{path.name} is damaged"
    # Older versions saved a state at a divergence, whatever the weights were.
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if int(checkpoint.name.rpartition("-")[2]) in state.get("skipped_steps", ()):
        return "it was saved after a step with NaN or Inf"
    return None


def read_values(folder: Path, config: PruningConfig) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, of a run with the same configuration.

    Raises:
        FileNotFoundError: the folder holds no state of a pruning run.
        ValueError: the run was started with another pruning configuration.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no state of a pruning run ({STATE_FILE} is missing).")
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_same_config(state, config, of=f"The run in {folder.parent}", otherwise=", or start anew with --overwrite")
    return state


def widths_begun_with(folder: Path) -> str | None:
    """The widths that the run of a checkpoint aims at, where it was started with some: times differ from run to run."""
    path = folder / STATE_FILE
    found = json.loads(path.read_text(encoding="utf-8"))["config"].get("widths") if path.is_file() else None
    return None if found is None else str(found)


def check_same_config(
    values: Mapping[str, Any], config: PruningConfig, *, of: str = "The run", otherwise: str = ""
) -> None:
    """Make sure that a state belongs to a run with the same configuration.

    Raises:
        ValueError: it does not; the message lists what differs.
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
    """Bring an unpruned model to the structure and the refitted weights of a checkpoint, in place.

    Of a run in which single weights become zero, masks are set when it begins.

    Call it before the Trainer is built; the Trainer then loads adapter, optimizer and data position from the same
    folder.

    Returns:
        The run to go on with, and the history and the skipped steps so far.

    Raises:
        FileNotFoundError: the folder holds no state of a pruning run.
        ValueError: the run was started with another pruning configuration, or with another model.
    """
    values = read_values(folder, config)
    tensors = load_file(folder / TENSOR_FILE)
    run = run_class(config).restored(model, config, values, tensors)
    return run, values["history"], values["skipped_steps"]


def run_class(config: PruningConfig) -> type[PruningRun]:
    """Which kind of run a configuration asks for: one that cuts groups, or one in which weights become zero."""
    return PstRun if config.unstructured else GroupRun


def new_run(model: nn.Module, config: PruningConfig) -> PruningRun:
    """A run that has not begun."""
    return run_class(config).of(model, config)
