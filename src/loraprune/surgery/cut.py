"""Cutting a model by your own plan: one call that checks the plan, cuts, and repairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from loraprune.calibration.block_by_block import Calibration
from loraprune.calibration.progress import Progress
from loraprune.layers.lora import check_tied_adapters, has_variant
from loraprune.layers.quantized import prepare_
from loraprune.layers.unwrap import base_model
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.config_widths import update_config_
from loraprune.surgery.output_error import ConsumerError
from loraprune.surgery.refit import CutHooks, cut_and_repair_
from loraprune.surgery.repairs import Bias, Repair, repair_of

Rows = Iterable[torch.Tensor | Sequence[int] | Mapping[str, torch.Tensor]] | Mapping[str, torch.Tensor] | torch.Tensor
"""Calibration data in the forms that tokenizers and data loaders return."""


def cut_(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Rows | None = None,
    repair: str | Repair | None = None,
    damping: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    device: torch.device | str | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[ConsumerError, ...]:
    """Cut a model down to a plan, in place, and repair the consumers.

    Afterwards the model runs, trains and can be cut again. Its config has the new widths, and :func:`loraprune.save`
    writes it.

    Example::

        structure = describe(model)
        plan = Plan.uniform(structure, 0.3)
        cut_(model, plan, calibration=[tokenizer(text).input_ids for text in texts])
        save(model, "smaller", tokenizer)

    Args:
        model: a transformers model, or the ``PeftModel`` around it.
        plan: groups that stay, as :func:`loraprune.describe` numbers them in the current model.
        calibration: a few dozen rows like those of later use: token ids (lists, 1-D tensors, or one 2-D tensor) or
            mappings of the model's inputs. Required for a repair.
        repair: ``stream``, ``refit``, ``bias`` (FLAP, arXiv 2312.11983) or ``none``, or an object of
            :mod:`loraprune.repairs`. None means ``stream`` with calibration data, otherwise ``none``.
        damping: ridge of a least-squares repair given by name, as a share of the mean diagonal of the second moment.
        optimizer: optimizer whose state shrinks with the parameters.
        device: device to repair on, one block at a time, if it is not the model's.
        progress: function called with the number of finished blocks and of all blocks.

    Returns:
        The relative errors of each consumer that least squares repaired, before and after the repair.

    Raises:
        ValueError: the family is not supported, the plan does not fit this model, or the model could not run or be
            repaired in this way. The model is then unchanged.
    """
    rows = None if calibration is None else as_calibration(calibration)
    repair = repair_of(repair or ("stream" if rows else "none"), damping)
    structure, plan = _prepared(model, plan, rows, repair)
    errors: list[ConsumerError] = []
    place = None if device is None else torch.device(device)
    cut_and_repair_(
        model,
        structure,
        Plan.full(structure),
        plan,
        calibration=rows if repair.reads_data else None,
        repair=repair,
        optimizer=optimizer,
        hooks=CutHooks(device=place, progress=progress, noted=errors.append),
    )
    update_config_(base_model(model).config, structure, plan)
    return tuple(errors)


def _prepared(model: nn.Module, plan: Plan, rows: Calibration | None, repair: Repair) -> tuple[Structure, Plan]:
    """Check a plan and return its structure and the complete plan; then give the model what the repair needs."""
    if repair.reads_data and not rows:
        raise ValueError(f"The repair {repair.name!r} needs calibration data. Pass calibration=, or repair='none'.")
    prepare_(model)
    structure = structure_of(model, plan)
    plan = completed(plan, structure)
    plan.check(structure)
    check_tied_adapters(model)
    if repair.reads_data and any(map(has_variant, model.modules())):
        raise ValueError(
            "The adapter is a variant of LoRA (such as DoRA), whose weight is not W + s·B·A, so it cannot be "
            "repaired. Use repair='none', or merge it first."
        )
    if rows:
        _check_token_ids(base_model(model), rows)
    if isinstance(repair, Bias):
        give_biases_(base_model(model), structure)
    return structure, plan


def structure_of(model: nn.Module, plan: Plan) -> Structure:
    """Return the structure that holds the dimensions of a plan, of any kinds.

    Raises:
        ValueError: the model has no such dimensions.
    """
    structure = describe(model)
    names = {dimension.name for dimension in structure}
    if set(plan.kept) <= names:
        return structure
    kinds = []
    for kind in (*structure.kinds, *structure.left_out, *structure.whole):
        found = describe(model, [kind])
        if any(dimension.name in plan.kept for dimension in found):
            kinds.append(kind)
        names |= {dimension.name for dimension in found}
    odd = sorted(set(plan.kept) - names)
    if odd:
        raise ValueError(f"The plan is for another model: this one has no dimension {odd[0]!r}.")
    return describe(model, kinds)


def completed(plan: Plan, structure: Structure) -> Plan:
    """Add all groups of the dimensions that a plan leaves out."""
    return Plan({**Plan.full(structure).kept, **plan.kept})


def as_calibration(rows: Rows) -> Calibration:
    """Convert rows to the form that passes over calibration data take.

    Raises:
        ValueError: there are no rows, or one has an unsupported form.
    """
    if isinstance(rows, Mapping):
        return [dict(rows)]
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Mapping):
            found.append(row)
            continue
        try:
            ids = torch.as_tensor(row)
        except (TypeError, ValueError):
            ids = torch.empty(0)
        if ids.dim() != 1 or ids.is_floating_point() or ids.numel() == 0:
            raise ValueError(
                f"Row {len(found)} of the calibration data is {_shown(row)}. A row is a list or a 1-D tensor of token "
                "ids, such as tokenizer(text).input_ids, or a mapping of the model's inputs."
            )
        found.append(ids)
    if not found:
        raise ValueError("The calibration data have no rows.")
    if len({isinstance(row, Mapping) for row in found}) > 1:
        raise ValueError("The calibration data mix rows of token ids with mappings of inputs. Pass only one form.")
    return found


def _shown(row: Any) -> str:
    """Short form of a row for an error message."""
    if isinstance(row, torch.Tensor):
        return f"a tensor of shape {tuple(row.shape)} and type {row.dtype}"
    text = repr(row)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _check_token_ids(model: Any, rows: Calibration) -> None:
    """Check that all token ids are in the model's vocabulary.

    Raises:
        ValueError: one is not.
    """
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    largest = max((int(row.max()) for row in rows if isinstance(row, torch.Tensor)), default=0)
    if known is not None and largest >= known:
        raise ValueError(
            f"The calibration data contain the token id {largest}, but the model has {known} tokens. Use the model's "
            "own tokenizer."
        )
