"""Trials of widths on the model itself: cut, repair, measure, restore."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from loraprune.allocation.measured_widths import WidthTrial, search_widths
from loraprune.calibration.block_by_block import Calibration
from loraprune.layers.unwrap import base_model
from loraprune.metrics.divergence import Divergence, held_back
from loraprune.record.saved_steps import SavedSteps

if TYPE_CHECKING:
    from loraprune.pruning.groups import Groups
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.widths import Widths

HELD_BACK = 8
"""One in this many calibration rows is held back to judge the trials."""

FITTED_SHARE = 3
"""The trials are repaired on one in this many of the other rows."""


def try_widths(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    cut_: Callable[[Widths, Calibration], None],
    saved: SavedSteps | None = None,
) -> tuple[WidthTrial, ...]:
    """Try widths that meet the target of a model's groups; the model itself stays unchanged.

    Args:
        model: uncut model.
        groups: groups of the model, with their target.
        calibration: calibration data: some rows judge the trials, some of the others repair them.
        cut_: function that cuts the model to widths and repairs it, in place, on the calibration data it gets.
        saved: finished trials of an interrupted run, and the place to save further ones.

    Returns:
        See :func:`loraprune.allocation.measured_widths.search_widths`. Empty with fewer than :data:`HELD_BACK` rows,
        which are too few to judge trials.
    """
    if len(calibration) < HELD_BACK:
        return ()
    fitted, judging = held_back(calibration, HELD_BACK)
    divergence: Divergence | None = None

    def measure(widths: Widths) -> float:
        nonlocal divergence
        name = "-".join(["trial", *(f"{kind}{width}" for kind, width in widths.items())])
        finished = None if saved is None else saved.found(name)
        if finished is not None:
            return float(finished.facts["divergence"])
        divergence = divergence or Divergence(model, judging)
        with _on_copies(model, groups.structure):
            cut_(widths, fitted[::FITTED_SHARE])
            found = divergence.of(model, shared=True)
        if saved is not None:
            saved.keep(name, {}, {"divergence": found})
        return found

    return search_widths(groups.structure, groups.target.ratio, groups.legal_widths(), measure)


@contextmanager
def _on_copies(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Replace the model's blocks by copies for a ``with`` block; an accelerator's blocks move to the CPU meanwhile."""
    base = base_model(model)
    names = dict.fromkeys(block.rpartition(".")[0] for block in structure.blocks)
    blocks = {name: base.get_submodule(name) for name in names}
    devices = {parameter.device for module in blocks.values() for parameter in module.parameters()}
    (device,) = devices if len(devices) == 1 else [None]
    try:
        for name, module in blocks.items():
            if device is not None:
                module.to("cpu")
            copied = copy.deepcopy(module)
            _put_(base, name, copied if device is None else copied.to(device))
        yield
    finally:
        for name, module in blocks.items():
            _put_(base, name, nn.ModuleList())
            _put_(base, name, module if device is None else module.to(device))


def _put_(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
