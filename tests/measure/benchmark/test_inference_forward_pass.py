from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.forward_pass import forward_latency
from tests.checkpoints import VOCABULARY, byte_model

from loraprune.measure.benchmark import timing as turns


def test_every_model_is_timed() -> None:
    found = forward_latency({"dense": byte_model(), "pruned": byte_model(intermediate_size=8)}, tokens=8, repeats=3)
    assert set(found) == {"dense", "pruned"}
    assert all(0.0 < seconds < 10.0 for seconds in found.values())


def test_models_take_turns_on_whole_batches_of_tokens() -> None:
    calls: list[tuple[str, torch.Size, bool]] = []

    def listen(name: str) -> Any:
        model = byte_model().train()

        def note(module: Any, args: Any, kwargs: Any) -> None:
            assert int(kwargs["input_ids"].max()) < VOCABULARY
            assert not torch.is_grad_enabled()
            calls.append((name, kwargs["input_ids"].shape, module.training))

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    models = {name: listen(name) for name in ("a", "b")}
    forward_latency(models, batch_size=2, tokens=7, repeats=3, warmup=1)
    assert calls == [(name, torch.Size([2, 7]), False) for _ in range(4) for name in ("a", "b")]
    assert all(model.training for model in models.values())


def test_the_median_of_the_timed_passes_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first pass is warm-up; the others take 5, 1 and 2 seconds.
    clock = iter([0.0, 9.0, 100.0, 105.0, 105.0, 106.0, 106.0, 108.0])
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert forward_latency({"only": byte_model()}, tokens=4, repeats=3, warmup=1) == {"only": 2.0}
