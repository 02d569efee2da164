"""The state of a pruning run inside a Trainer's checkpoint, so that an interrupted run can go on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from loraprune.averaging import MovingAverage
from loraprune.plan import Plan
from loraprune.slicing import slice_
from loraprune.structure import describe
from loraprune.training.config import PruningConfig
from loraprune.training.run import CutRecord, PruningRun
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from torch import nn

STATE_FILE = "loraprune_state.json"
TENSOR_FILE = "loraprune_state.safetensors"
_FORMAT = 1


def refitted_weights(model: nn.Module, run: PruningRun) -> dict[str, torch.Tensor]:
    """Base weights that a refit has changed: they follow from neither the original model nor the plan."""
    if not (run.config.refit and run.records):
        return {}
    base = base_model(model)
    return {
        f"{consumer.module}.{consumer.parameter}": getattr(
            base_layer(base.get_submodule(consumer.module)), consumer.parameter
        )
        .detach()
        .cpu()
        .contiguous()
        for consumer in (dimension.consumer for dimension in run.structure)
    }


def save_state(
    run: PruningRun, model: nn.Module, folder: Path, history: list[dict[str, Any]], skipped_steps: list[int]
) -> None:
    """Write plan, averages, cuts, refitted weights, history and skipped steps into a checkpoint folder.

    The JSON file comes last and appears at once: a checkpoint without it is not complete.
    """
    tensors = {f"average/{name}": value.cpu().contiguous() for name, value in run.average.values.items()}
    tensors |= {f"importance/{name}": value.cpu().contiguous() for name, value in run.importance.items()}
    tensors |= {f"weight/{name}": value for name, value in refitted_weights(model, run).items()}
    save_file(tensors, folder / TENSOR_FILE)
    state = {
        "format": _FORMAT,
        "config": asdict(run.config),
        "total_steps": run.total_steps,
        "plan": run.plan.to_json(),
        "updates": run.average.updates,
        "cuts": [asdict(record) for record in run.records],
        "history": history,
        "skipped_steps": skipped_steps,
    }
    temporary = folder / f"{STATE_FILE}.tmp"
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(folder / STATE_FILE)


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in run_dir.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE_FILE).is_file()
    ]
    return max(found)[1] if found else None


def restore_(
    model: nn.Module, folder: Path, config: PruningConfig
) -> tuple[PruningRun, list[dict[str, Any]], list[int]]:
    """Bring an unpruned model to the structure and the refitted weights of a checkpoint, in place.

    Call it before the Trainer is built; the Trainer then loads adapter, optimizer and data position from the same
    folder.

    Returns:
        The run to go on with, and the history and the skipped steps so far.

    Raises:
        FileNotFoundError: the folder holds no state of a pruning run.
        ValueError: the run was started with another pruning configuration, or with another model.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no state of a pruning run ({STATE_FILE} is missing).")
    state = json.loads(path.read_text(encoding="utf-8"))
    saved = PruningConfig(**state["config"])
    if saved != config:
        before, now = asdict(saved), asdict(config)
        changed = ", ".join(f"{key}: {before[key]} -> {now[key]}" for key in before if before[key] != now[key])
        raise ValueError(
            f"The run in {folder.parent} was started with other pruning options ({changed}). Resume it with the same "
            "options, or start anew with --overwrite."
        )
    structure = describe(model, config.dimensions, config.keep_layers)
    plan = Plan.from_json(state["plan"])
    plan.check(structure)
    tensors = load_file(folder / TENSOR_FILE)

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    if config.apply == "slice":
        slice_(model, structure, Plan.full(structure), plan)
    base = base_model(model)
    with torch.no_grad():
        for name, weight in named("weight/").items():
            module, _, parameter = name.rpartition(".")
            getattr(base_layer(base.get_submodule(module)), parameter).data.copy_(weight)
    device = next(base.parameters()).device
    run = PruningRun(
        config=config,
        structure=structure,
        plan=plan,
        average=MovingAverage({name: value.to(device) for name, value in named("average/").items()}, state["updates"]),
        records=[CutRecord(**record) for record in state["cuts"]],
        importance=named("importance/"),
        total_steps=state["total_steps"],
    )
    return run, state["history"], state["skipped_steps"]
