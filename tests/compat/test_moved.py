"""Modules under the paths that the documentation gave before they moved."""

from __future__ import annotations

import importlib
import sys

import pytest

from loraprune.compat.moved import MOVED, RENAMED_AT_OLD_PATHS, find_moved_modules

DOCUMENTED = {
    "loraprune.evaluation.completions": "Writing",
    "loraprune.evaluation.results": "read_results",
    "loraprune.evaluation.tasks": "score_tasks",
    "loraprune.masking": "masked",
    "loraprune.quantization": "prepare_",
    "loraprune.recipes.reports.report_again": "report_again",
    "loraprune.refit": "cut_",
    "loraprune.report.runs_page": "write_page",
    "loraprune.report.runs_picture": "write_picture",
    "loraprune.runtimes.semi_structured": "to_semi_structured_",
    "loraprune.slicing": "slice_",
}


def test_every_old_path_is_tried_here() -> None:
    assert set(DOCUMENTED) == {old for old, new in MOVED.items() if new is not None}


@pytest.mark.parametrize(("old", "name"), DOCUMENTED.items())
def test_an_old_path_gives_what_the_new_one_holds_and_says_where_that_is(
    old: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    new = MOVED[old]
    assert new is not None
    with pytest.warns(FutureWarning, match=f"{old} has moved to {new}"):
        module = importlib.import_module(old)
    current = RENAMED_AT_OLD_PATHS.get((old, name), name)
    assert getattr(module, name) is getattr(importlib.import_module(new), current)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loraprune.evaluation.tasks.scoring", "loraprune.metrics.tasks.scoring"),
        ("loraprune.quantization.layout", "loraprune.layers.quantized.layout"),
    ],
)
def test_modules_below_an_old_path_hold_the_same_objects(old: str, new: str) -> None:
    for name in (old.rpartition(".")[0], old):
        sys.modules.pop(name, None)
    with pytest.warns(FutureWarning, match="has moved to"):
        module = importlib.import_module(old)
    current = importlib.import_module(new)
    for name in (name for name in vars(current) if not name.startswith("__")):
        assert getattr(module, name) is getattr(current, name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{old}_nowhere")


def test_a_path_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("loraprune.nowhere")


def test_the_finder_is_there_once() -> None:
    before = len(sys.meta_path)
    find_moved_modules()
    assert len(sys.meta_path) == before
