"""Modules under old, documented paths; importing one warns and names the new path."""

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
"""Old paths to new paths; None stands for a package that only held other modules."""

RENAMED_AT_OLD_PATHS = {("loraprune.refit", "cut_"): "cut_and_repair_"}
"""Names that changed with the path."""


def new_path(old: str) -> str | None:
    """Return the new path of a module, by its old path or that of a parent package; None if neither is known."""
    above, _, name = old.rpartition(".")
    if old in MOVED or not above:
        return MOVED.get(old)
    found = new_path(above)
    return None if found is None else f"{found}.{name}"


class _MovedModule(Loader):
    """Makes a module that returns the attributes of the module at the new path."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []  # so that the finder is asked for submodules, too
        new = new_path(spec.name)
        if new is None:
            return module
        warnings.warn(
            f"{spec.name} has moved to {new}; the next version removes the old path.", FutureWarning, stacklevel=2
        )

        def hand_out(name: str) -> Any:
            return getattr(importlib.import_module(new), RENAMED_AT_OLD_PATHS.get((spec.name, name), name))

        module.__dict__["__getattr__"] = hand_out
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


class _MovedFinder(MetaPathFinder):
    """Finds moved modules, after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            new = new_path(fullname)
            if new is None or importlib.util.find_spec(new) is None:
                return None
        return ModuleSpec(fullname, _MovedModule(), is_package=True)


def find_moved_modules() -> None:
    """Make ``import`` find modules under their old paths."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
