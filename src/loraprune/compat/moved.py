"""Modules under the paths that the documentation gave before they moved; importing one says where it is now."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "loraprune.evaluation": None,
    "loraprune.evaluation.completions": "loraprune.metrics.completions",
    "loraprune.evaluation.results": "loraprune.measure.evaluation.results",
    "loraprune.evaluation.tasks": "loraprune.metrics.tasks",
    "loraprune.masking": "loraprune.surgery.masking",
    "loraprune.quantization": "loraprune.layers.quantized",
    "loraprune.recipes.reports": None,
    "loraprune.recipes.reports.report_again": "loraprune.recipes.report",
    "loraprune.refit": "loraprune.surgery.refit",
    "loraprune.report.runs_page": "loraprune.report.comparison.page",
    "loraprune.report.runs_picture": "loraprune.report.comparison.figure",
    "loraprune.runtimes": None,
    "loraprune.runtimes.semi_structured": "loraprune.checkpoint.exports.semi_structured",
    "loraprune.slicing": "loraprune.surgery.slicing",
}
"""Old paths to new ones; None stands for a package that only held others."""

RENAMED_AT_OLD_PATHS = {("loraprune.refit", "cut_"): "cut_and_repair_"}
"""What has another name at its new path."""


def new_path(old: str) -> str | None:
    """Where a module is now, by its own old path or by that of a package above it; None where neither is known."""
    above, _, name = old.rpartition(".")
    if old in MOVED or not above:
        return MOVED.get(old)
    found = new_path(above)
    return None if found is None else f"{found}.{name}"


class _MovedModule(Loader):
    """Makes a module that hands out what the one at the new path holds."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []  # what is below is looked for by the finder, too
        new = new_path(spec.name)
        if new is None:
            return module
        warnings.warn(
            f"{spec.name} has moved to {new}; the old path goes with the next version.", FutureWarning, stacklevel=2
        )

        def hand_out(name: str) -> Any:
            return getattr(importlib.import_module(new), RENAMED_AT_OLD_PATHS.get((spec.name, name), name))

        module.__dict__["__getattr__"] = hand_out
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _MovedFinder(MetaPathFinder):
    """Asked last, for modules that are nowhere else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            new = new_path(fullname)
            if new is None or importlib.util.find_spec(new) is None:
                return None
        return ModuleSpec(fullname, _MovedModule(), is_package=True)


def find_moved_modules() -> None:
    """Let ``import`` find modules under their old paths."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
