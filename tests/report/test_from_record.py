"""A report shows the course of a run as its record has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.models import tiny_model

from loraprune.recipes.steps.record import dimensions_of
from loraprune.record.codec import decode
from loraprune.record.pruning_course import DimensionRecord
from loraprune.record.report_data import Cut, GroupMap, LayerWidth, ReportData
from loraprune.record.run_record import RunRecord
from loraprune.report.from_record import group_maps, report_of, widths_of
from loraprune.structure.describe import describe

JOINT = RunRecord.read(Path(__file__).parents[1] / "record" / "older_runs" / "joint")


def dimension(name: str, groups: int, layer: int | None = 0, kind: str = "channels") -> DimensionRecord:
    return DimensionRecord(name=name, kind=kind, layer=layer, groups=groups)


def report_with(part: str | None = None, **changes: Any) -> ReportData:
    """The report of a run whose metrics, or a part of them, have other values, as plain ones."""
    from loraprune.record.codec import encode

    metrics: dict[str, Any] = encode(JOINT.metrics)
    changed: Mapping[str, Any] = changes if part is None else {part: metrics[part] | changes}
    return report_of(replace(JOINT, metrics=decode(type(JOINT.metrics), metrics | changed)))


def test_up_to_64_groups_have_a_cell_each() -> None:
    (found,) = group_maps([dimension("a", 64)], {"a": [0, 2, 63]})
    assert found == GroupMap(kind="channels", layer=0, kept=(1.0, 0.0, 1.0, *[0.0] * 60, 1.0), groups_per_cell=1)


def test_more_groups_share_cells_with_their_neighbors() -> None:
    (found,) = group_maps([dimension("a", 10)], {"a": [0, 1, 2, 5, 9]}, cells=4)
    # Runs of three; the last has one group.
    assert found == GroupMap(kind="channels", layer=0, kept=(1.0, 1 / 3, 0.0, 1.0), groups_per_cell=3)


@pytest.mark.parametrize("groups", [1, 63, 64, 65, 128, 129, 11008])
def test_a_layer_has_64_cells_at_most_and_every_group_is_in_one(groups: int) -> None:
    (found,) = group_maps([dimension("a", groups)], {"a": range(groups)})
    assert len(found.kept) <= 64
    assert set(found.kept) == {1.0}
    assert (len(found.kept) - 1) * found.groups_per_cell < groups <= len(found.kept) * found.groups_per_cell


def test_what_no_layer_has_to_itself_has_no_map() -> None:
    assert group_maps([dimension("hidden", 8, None, "hidden")], {"hidden": [0]}) == ()
    assert widths_of([dimension("hidden", 8, None, "hidden")], {"hidden": [0]}) == ()


def test_of_whole_blocks_the_widths_say_which_stayed() -> None:
    assert widths_of([dimension("blocks", 3, None, "blocks")], {"blocks": [0, 2]}) == tuple(
        LayerWidth(layer=layer, kind="blocks", total=1, kept=kept) for layer, kept in enumerate([1, 0, 1])
    )


def test_the_record_knows_the_dimensions_without_the_model() -> None:
    structure = describe(tiny_model("llama"))
    found = dimensions_of(structure)
    assert found[0] == dimension("layers.0.heads", 4, kind="heads")
    assert [item.name for item in found] == [item.name for item in structure]
    (blocks,) = dimensions_of(describe(tiny_model("llama"), ["blocks"]))
    assert blocks.layer is None


def test_cuts_that_fell_on_one_step_are_one() -> None:
    cut = {"step": 3, "ratio": 0.2, "widths": {"heads": [2, 2]}, "stability": {"heads": 0.5}, "seconds": 1.5}
    (found,) = report_with("pruning", cuts=[{**cut, "ratio": 0.1}, cut]).cuts
    assert found == Cut(step=3, ratio=0.2, widths={"heads": (2, 2)}, stability={"heads": 0.5}, seconds=1.5)


def test_a_record_of_a_version_that_knew_less_is_read() -> None:
    report = report_with(
        pruning={
            name: getattr(JOINT.metrics.pruning, name)
            for name in ("ratio", "target_ratio", "parameters_before", "parameters", "prunable_parameters_before",
                         "prunable_parameters")
        } | {"cuts": [{"step": 3, "ratio": 0.2, "widths": {"heads": [2]}}]},
        history=None,
        phases={},
    )  # fmt: skip
    (cut,) = report.cuts
    assert (cut.stability, cut.seconds) == ({}, None)
    assert (report.refit_errors, report.history, report.maps, report.layers) == ((), (), (), ())


def test_a_loss_that_was_no_number_is_none() -> None:
    point = {"step": 1, "loss": None, "ratio": 0.0, "parameters": 5, "seconds": 0.1}
    assert math.isnan(report_with(history=[point]).history[0].loss)


def test_a_figure_that_was_no_number_keeps_its_row() -> None:
    rows = {row.label: row for row in report_with("pruned", perplexity=None).rows}
    assert math.isnan(rows["Held-out perplexity"].pruned)


def test_of_several_cuts_without_training_the_last_errors_of_each_dimension_are_shown() -> None:
    def error(number: int, cut: float, dimension: str = "a") -> dict[str, Any]:
        return {
            "step": 0, "cut_number": number, "dimension": dimension, "kind": "channels", "layer": 0, "cut": cut,
            "repaired": None,
        }  # fmt: skip

    errors = [error(1, 0.5), error(1, 0.75, "b"), error(2, 0.25)]
    assert [item.cut for item in report_with("pruning", refit_errors=errors).refit_errors] == [0.75, 0.25]
