from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benchmarks.memory_model import small_config

from loraprune.checkpoint.source import ModelSource
from loraprune.measure.estimation import estimate, kernels, known_shapes
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.gpus import Gpu
from loraprune.measure.estimation.kernels import LiveShapes
from loraprune.measure.estimation.links import PCIE_3
from loraprune.measure.estimation.remedies import remedies

Call = Callable[..., Any]
CREATING: dict[str, Call] = {
    "add": lambda a: a + 1,
    "products of integers": lambda a: a.to(torch.int32) * 2,
    "products with floats": lambda a: a.to(torch.int32) * 2.0,
    "matmul": lambda a: a @ a.T,
    "cat": lambda a: torch.cat([a, a], dim=1),
    "two results": lambda a: a.topk(2, dim=-1),
    "other strides": lambda a: torch.empty_like(a.T),
    "without arguments": lambda a: torch.zeros(3, device="meta"),
}
SHARING: dict[str, Call] = {
    "view": lambda a: a.view(-1),
    "transpose": lambda a: a.T,
    "chunk": lambda a: a.chunk(2)[0],
    "view that the schema hides": lambda a: torch.ops.aten._unsafe_view(a, [-1]),
    "in place": lambda a: a.add_(1),
}


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_shapes, "_KNOWN", {})


def watched(call: Call, tensor: torch.Tensor) -> Any:
    with LiveShapes():
        return call(tensor)


def described(result: Any) -> list[tuple[Any, ...]]:
    made = result if isinstance(result, tuple) else (result,)
    return [(t.shape, t.stride(), t.dtype, t.device, t.untyped_storage().nbytes()) for t in made]


@pytest.mark.parametrize("name", CREATING)
def test_what_is_known_is_what_the_operation_gives(name: str) -> None:
    a = torch.empty(4, 6, device="meta")
    plain, first = CREATING[name](a), watched(CREATING[name], a)
    known = len(known_shapes._KNOWN)
    again = watched(CREATING[name], torch.empty(4, 6, device="meta"))
    assert described(plain) == described(first) == described(again)
    assert known == len(known_shapes._KNOWN) > 0
    assert None not in known_shapes._KNOWN.values()


@pytest.mark.parametrize("name", SHARING)
def test_what_shares_a_storage_runs_each_time(name: str) -> None:
    for _ in range(2):
        a = torch.empty(4, 6, device="meta")
        assert watched(SHARING[name], a).untyped_storage()._cdata == a.untyped_storage()._cdata


def test_values_are_computed_each_time() -> None:
    for number in (1.0, 2.0):
        assert watched(lambda a: a + 1, torch.tensor([number])).tolist() == [number + 1]


def test_the_default_dtype_counts() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            found.append(watched(lambda a: torch.zeros(2, device="meta"), torch.empty(0)).dtype)
        finally:
            torch.set_default_dtype(torch.float32)
    assert found == [torch.float32, torch.float64]


def test_an_estimate_is_the_same_whether_shapes_are_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> dict[str, Any]:
        source = ModelSource(name="model", config=small_config("llama"))
        return Estimator(source, EstimateConfig(max_length=64)).estimate().to_json()

    known = [found(), found()]
    monkeypatch.setattr(kernels, "by_shape", lambda func, args, kwargs: func(*args, **kwargs))
    assert known == [found()] * 2


def test_settings_that_a_step_does_not_read_do_not_simulate_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate, steps, tried = estimate.simulate, [], []

    def counted(model: Any, structure: Any, settings: Any) -> Any:
        steps.append((id(model), repr(settings)))
        return simulate(model, structure, settings)

    def watched_remedies(*args: Any, **kwargs: Any) -> Iterator[tuple[str, EstimateConfig]]:
        for found in remedies(*args, **kwargs):
            tried.append(found[0])
            yield found

    monkeypatch.setattr(estimate, "simulate", counted)
    monkeypatch.setattr(estimate, "remedies", watched_remedies)
    # It holds the weights, and with no option more than these.
    small = Gpu(name="small", memory=1.08, tflops=1.0, bandwidth=1.0, single=1.0, link=PCIE_3)
    monkeypatch.setattr(estimate, "GPUS", (small,))
    source = ModelSource(name="model", config=small_config("llama"))
    (fit,) = Estimator(source, EstimateConfig(max_length=64)).estimate().gpus
    assert fit.remedy is None
    assert any("--calibration-sequences" in flags for flags in tried)
    assert len(tried) > len(steps) == len(set(steps))
