"""The state of a pruning run inside a Trainer's checkpoint, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from loraprune.importance.criterion import LearnedCriterion
from loraprune.importance.moving_average import MovingAverage
from loraprune.layers.quantized import is_quantized, prepare_, set_weight_, source_of
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.pst import PstRun
from loraprune.pruning.run import CutRecord, PruningRun
from loraprune.record.atomic import write_text
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from torch import nn

STATE_FILE = "loraprune_state.json"
TENSOR_FILE = "loraprune_state.safetensors"
_FORMAT = 1


def refitted_weights(model: nn.Module, run: PruningRun) -> dict[str, torch.Tensor]:
    """Base weights that a refit, or gates folded in, have changed: neither the original model nor the plan has them.

    Of quantized layers, what was quantized last, refit or not: it depends on the cuts on the way, too.
    """
    base = base_model(model)
    found = {}
    changed = run.refits or isinstance(run.criterion, LearnedCriterion)
    for dimension in run.structure if run.records else ():
        for member in dimension.all_members:
            layer = base_layer(base.get_submodule(member.module))
            weight = source_of(layer)
            if weight is None and changed and member is dimension.consumer and not is_quantized(layer):
                weight = getattr(layer, member.parameter)
            if weight is None and member.axis == "norm" and dimension.kind == "hidden":
                weight = getattr(layer, member.parameter)  # scaled at each cut, and rounded
            if weight is not None:
                found[f"{member.module}.{member.parameter}"] = weight.detach().cpu().contiguous()
            if run.refits and run.config.repair == "bias" and member is dimension.consumer:
                found[f"{member.module}.bias"] = layer.bias.detach().cpu().contiguous()
    return found


def run_tensors(run: PruningRun, model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a run's state, by the names that they have in its file."""
    if isinstance(run, PstRun):
        return run.tensors()
    tensors = {f"average/{name}": value.cpu().contiguous() for name, value in run.average.values.items()}
    tensors |= {f"importance/{name}": value.cpu().contiguous() for name, value in run.importance.items()}
    tensors |= {f"learned/{name}": value.cpu().contiguous() for name, value in run.learned_state().items()}
    return tensors | {f"weight/{name}": value for name, value in refitted_weights(model, run).items()}


def run_values(run: PruningRun, further: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a run's state: configuration, course, and what else there is to tell."""
    plan = {} if isinstance(run, PstRun) else {"plan": run.plan.to_json(), "updates": run.average.updates}
    return {
        "format": _FORMAT,
        "config": run.config.to_saved(),
        "total_steps": run.total_steps,
        **plan,
        "cuts": [asdict(record) for record in run.records],
        **further,
        "phases": dict(run.phases.seconds),
    }


def save_state(
    run: PruningRun, model: nn.Module, folder: Path, history: list[dict[str, Any]], skipped_steps: list[int]
) -> None:
    """Write the state of a run, history and skipped steps into a checkpoint folder.

    The JSON file comes last and appears at once: a checkpoint without it is not complete.
    """
    save_file(run_tensors(run, model), folder / TENSOR_FILE)
    state = run_values(run, {"history": history, "skipped_steps": skipped_steps})
    # Options may be numbers of NumPy, as of a sweep.
    write_text(folder / STATE_FILE, json.dumps(state, default=lambda value: value.item()))


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in run_dir.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE_FILE).is_file()
    ]
    return max(found)[1] if found else None


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


def check_same_config(
    values: Mapping[str, Any], config: PruningConfig, *, of: str = "The run", otherwise: str = ""
) -> None:
    """Make sure that a state belongs to a run with the same configuration.

    Raises:
        ValueError: it does not; the message lists what differs.
    """
    given = dict(values["config"])
    if given["criterion"] == config.criterion_name:
        given["criterion"] = config.criterion  # of the user's own, only the name is in the file
    saved = PruningConfig.from_saved(given)
    if saved == config:
        return
    before, now = asdict(saved), asdict(config)
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
    if config.unstructured:
        run: PruningRun = PstRun.of(model, config)
        assert isinstance(run, PstRun)
        run.go_on(values, tensors)
    else:
        run = restored_run(model, values, tensors, config)
    return run, values["history"], values["skipped_steps"]


@torch.no_grad()
def restore_weights_(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model the base weights that cuts had changed; see :func:`refitted_weights`."""
    base = base_model(model)
    for name, weight in tensors.items():
        if not name.startswith("weight/"):
            continue
        module, _, parameter = name.removeprefix("weight/").rpartition(".")
        layer = base_layer(base.get_submodule(module))
        if is_quantized(layer) and parameter == "weight":
            set_weight_(layer, weight)
        else:
            getattr(layer, parameter).data.copy_(weight)


def restored_run(
    model: nn.Module, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], config: PruningConfig
) -> PruningRun:
    """The run to go on with; the unpruned model is brought to its structure and refitted weights, in place.

    Raises:
        ValueError: the state is of another model.
    """
    prepare_(model)
    structure = describe(model, config.dimensions, config.keep_layers)
    plan = Plan.from_json(values["plan"])
    plan.check(structure)

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    if config.repair == "bias" and config.ratio > 0.0 and not structure.spans_blocks:
        give_biases_(model, structure)
    if config.apply == "slice":
        slice_(model, structure, Plan.full(structure), plan)
    restore_weights_(model, tensors)
    device = next(model.parameters()).device
    run = PruningRun(
        config=config,
        structure=structure,
        plan=plan,
        average=MovingAverage({name: value.to(device) for name, value in named("average/").items()}, values["updates"]),
        records=[CutRecord.from_json(record) for record in values["cuts"]],
        importance=named("importance/"),
        learned=named("learned/"),
        total_steps=values["total_steps"],
    )
    run.phases.take_over(values.get("phases", {}))
    return run
