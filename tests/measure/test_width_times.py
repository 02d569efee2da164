from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import tiny_checkpoint
from tests.zoo import ROWS

from loraprune.checkpoint.source import ModelSource
from loraprune.measure import width_times
from loraprune.measure.benchmark.random_inputs import InputSize
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.width_times import TimedWork, WidthTimes, time_widths
from loraprune.structure.matching_widths import widths_within
from loraprune.structure.widths import legal_widths, widest

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Weighed:
    """Stands in for a timed call: it takes as many seconds as the model has parameters."""

    seconds: float


@pytest.fixture
def by_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    def contender(work: TimedWork, model: Any) -> Weighed:
        return Weighed(sum(parameter.numel() for parameter in model.parameters()))

    def quickest(contenders: Mapping[object, Weighed]) -> dict[object, float]:
        return {name: contender.seconds for name, contender in contenders.items()}

    monkeypatch.setattr(TimedWork, "contender", contender)
    monkeypatch.setattr(width_times, "_quickest", quickest)


def shapes_of(folder: Path, **described: Any) -> ShapeModels:
    kinds, keep = described.get("kinds"), described.get("keep_layers", ())
    return ShapeModels.of(ModelSource.of(str(folder)), kinds, keep)


def timed(shapes: ShapeModels, work: TimedWork | None = None) -> WidthTimes:
    legal = legal_widths(shapes.structure)
    return time_widths(shapes, legal, work or TimedWork(size=InputSize(tokens=16)), dtype=torch.float32, device=CPU)


@pytest.mark.usefixtures("by_parameters")
@pytest.mark.parametrize("keep_layers", [(), (0, -1)], ids=str)
def test_what_each_kind_saves_is_added_up(tmp_path: Path, keep_layers: Any) -> None:
    shapes = shapes_of(tiny_checkpoint(tmp_path, num_hidden_layers=5), keep_layers=keep_layers)
    structure, times = shapes.structure, timed(shapes)
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    assert times.seconds(dense) == pytest.approx(structure.num_parameters)
    assert times.speedup(dense) == 1.0
    widths = {"heads": 1, "channels": 30}
    gone = sum(
        d.parameters_per_group * (d.num_groups - widths[d.kind])
        for d in structure
        if d.layer not in structure.protected
    )
    assert times.seconds(widths) == pytest.approx(structure.num_parameters - gone)


@pytest.mark.usefixtures("by_parameters")
def test_blocks_that_go_take_their_time_along(tmp_path: Path) -> None:
    shapes = shapes_of(tiny_checkpoint(tmp_path, num_hidden_layers=5), kinds=("blocks",))
    (blocks,) = shapes.structure
    found = timed(shapes).seconds({"blocks": 2})
    assert found == pytest.approx(shapes.structure.num_parameters - 3 * blocks.parameters_per_group)


@pytest.mark.usefixtures("by_parameters")
def test_the_widest_that_fits_is_found_for_each_head_count(tmp_path: Path) -> None:
    shapes = shapes_of(tiny_checkpoint(tmp_path))
    structure, times = shapes.structure, timed(shapes)
    legal = legal_widths(structure)
    found = widths_within(structure, legal, lambda widths: times.speedup(widths) >= 1.2)
    assert len({widths["heads"] for widths in found}) == len(found) > 1
    for widths in found:
        assert times.speedup(widths) >= 1.2
        if widths["channels"] < widest(structure, "channels"):
            wider = {**widths, "channels": widths["channels"] + legal.multiples["channels"]}
            assert times.speedup(wider) < 1.2
    assert widths_within(structure, legal, lambda widths: False) == []


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_small_model_is_timed(tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_times, "MOST", 3)
    shapes = shapes_of(tiny_checkpoint(tmp_path))
    state = torch.get_rng_state()
    times = timed(shapes, TimedWork(phase=phase, size=InputSize(tokens=8, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert times.work == {"prefill": "2 × 8 tokens", "decode": "decoding behind 2 × 8 tokens"}[phase]
    assert times.block > 0
    assert all(seconds >= 0 for table in times.tables.values() for seconds in table.values())
    assert set(times.tables["heads"]) == {1, 2, 4}


@pytest.mark.parametrize("name", ["vit", "gpt2", "t5", "mixtral", "convnext"])
def test_models_of_other_kinds_are_timed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_times, "MOST", 3)
    row = next(row for row in ROWS if row.name == name)
    folder = tmp_path / name
    copy.deepcopy(row.model()).save_pretrained(folder)
    shapes = shapes_of(folder)
    times = timed(shapes)
    dense = {kind: widest(shapes.structure, kind) for kind in shapes.structure.kinds}
    assert times.speedup(dense) == pytest.approx(1.0)


def test_what_writes_no_text_cannot_decode(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == "vit")
    row.model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="writes no text, so decoding cannot be timed"):
        timed(shapes_of(tmp_path), TimedWork(phase="decode"))


def test_the_speed_by_hidden_size_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported for the hidden size"):
        timed(shapes_of(tiny_checkpoint(tmp_path), kinds=("hidden",)))


def test_without_room_a_ratio_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_times, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="Pass a ratio instead of a speed-up"):
        timed(shapes_of(tiny_checkpoint(tmp_path)))
