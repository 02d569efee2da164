"""The benchmark for a GPU runs, in miniature and on the CPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.benchmarks.test_benchmarks import ROOT, run

TINY = ("--device", "cpu", "--preset", "tiny", "--length", "8", "--tokens", "8", "--forwards", "2", "--repeats", "1")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a file of benchmarks/ as the script itself would."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> Any:
        found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, name, module)
        found.loader.exec_module(module)
        return module

    return load


@pytest.mark.full
@pytest.mark.slow
def test_every_run_in_several_processes_gives_what_one_process_gives() -> None:
    shown = run("benchmarks/gpu.py", "processes", "--device", "cpu")
    lines = [line for line in shown.splitlines() if line.startswith(("pass", "FAIL"))]
    assert [line.split()[0] for line in lines] == ["pass"] * 5, shown


@pytest.mark.full
@pytest.mark.slow
def test_every_table_is_printed_and_a_second_run_reads_the_rows_back(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "rows.jsonl"
    only = ("--only", "plain", "fisher, 4-bit", "dense", "50")
    shown = run("benchmarks/gpu.py", *TINY, "--out", str(out), *only)
    assert re.match(r"CPU; torch [^;]+, peft [^;]+; \d{4}-\d\d-\d\d; `python benchmarks/gpu.py --device cpu", shown)
    assert "s/iteration, 1 × 128 (extrapolated, ×32)" in shown
    for variant in ("plain LoRA", "fisher, 4-bit"):
        # Nothing counts the memory of a CPU.
        assert re.search(rf"\| {variant} \| \d+\.\d+ \| \d+\.\d+ \| – \| \d+\.\d+ \|", shown), variant
    assert "| fisher, 4-bit | – | nothing counts memory on this device |" in shown
    assert re.search(r"\| dense \| \d\.\d+ s \(1\.00×\) \| \d\.\d+ s \(1\.00×\) \|", shown)
    assert re.search(r"\| 50 % \| \d\.\d+ s \(\d+\.\d+×\) \| \d\.\d+ s \(\d+\.\d+×\) \|", shown)
    rows = out.read_text()
    assert not any("error" in json.loads(line) for line in rows.splitlines())
    again = run("benchmarks/gpu.py", *TINY, "--out", str(out), *only)
    assert out.read_text() == rows
    assert again.splitlines()[1:] == shown.splitlines()[1:]


@pytest.mark.full
@pytest.mark.slow
def test_the_smoke_run_tries_every_base_with_and_without_checkpointing() -> None:
    pytest.importorskip("bitsandbytes")
    shown = run("benchmarks/gpu.py", "smoke", "--device", "cpu", "--only", "fisher", "lora")
    lines = [line.split()[:4] for line in shown.splitlines()[1:]]
    ways = itertools.product(("bf16", "8-bit", "4-bit"), ("fisher", "lora"), ("plain", "checkpointing"))
    assert lines == [["pass", *way] for way in ways]


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        ((float("nan"), 0.5), "FAIL"),
        ((4.0, 0.0), "FAIL"),
        ((4.0, 0.5), "pass"),
        (ValueError("no gradient"), "refused"),
        (RuntimeError("no kernel"), "FAIL"),
        (ImportError("no bitsandbytes"), "skipped"),
    ],
)
def test_a_smoke_verdict_tells_what_broke_from_what_is_refused(
    modules: Any, monkeypatch: pytest.MonkeyPatch, outcome: Any, verdict: str
) -> None:
    modules("gpu_model")
    gpu_smoke = modules("gpu_smoke")

    def two_steps(*_: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(gpu_smoke, "_two_steps", two_steps)
    assert gpu_smoke._tried(8, "taylor", False, "cpu")[0] == verdict
    if verdict == "refused":  # nobody refuses this
        assert gpu_smoke._tried(8, "fisher", False, "cpu")[0] == "FAIL"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_of_random_weights_has_the_shape_and_the_layers_of_its_base(modules: Any, bits: int) -> None:
    if bits < 16:
        pytest.importorskip("bitsandbytes")
    gpu_model = modules("gpu_model")
    shape = gpu_model.PRESETS["tiny"].with_(bits=bits)
    model = gpu_model.random_model(shape, torch.device("cpu"))
    layer = model.model.layers[1].mlp.down_proj
    assert type(layer).__name__ == {16: "Linear", 8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    assert (layer.in_features, layer.out_features) == (shape.channels, shape.hidden)
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    ids = torch.arange(6)[None]
    assert bool(torch.isfinite(model(input_ids=ids).logits).all())


def test_the_presets_have_the_published_numbers_of_parameters(modules: Any) -> None:
    presets = modules("gpu_model").PRESETS
    from transformers import LlamaForCausalLM

    for name, billions in (("llama-7b", 6.74), ("llama-65b", 65.3)):
        with torch.device("meta"):
            model = LlamaForCausalLM(presets[name].config())
        assert sum(value.numel() for value in model.parameters()) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_memory_is_a_line_through_the_fewest_and_the_most_layers(modules: Any) -> None:
    modules("gpu_model")
    gpu_rows = modules("gpu_rows")
    assert gpu_rows.line({2: 1200, 4: 1390, 10: 2000}) == (1000.0, 100.0)


@pytest.mark.parametrize(("budget", "layers", "measured"), [(46.0, [2, 4, 40], False), (900.0, [2, 4, 80], True)])
def test_as_many_layers_as_fit_are_measured(
    modules: Any, monkeypatch: pytest.MonkeyPatch, budget: float, layers: list[int], measured: bool
) -> None:
    gpu_model = modules("gpu_model")
    gpu_rows = modules("gpu_rows")
    monkeypatch.setattr(gpu_rows, "_peak_of", lambda shape, *_: 5_500_000_000 + 1_000_000_000 * shape.layers)
    options = type("Options", (), {"device": "cpu", "budget_gb": budget})()
    row = gpu_rows.memory(gpu_model.PRESETS["llama-65b"], "lora, 8-bit", options)
    assert row == {"layers": layers, "total_layers": 80, "measured": measured, "peak_bytes": 85_500_000_000}


def test_memory_that_is_extrapolated_says_so(modules: Any) -> None:
    for name in ("gpu_model", "gpu_rows", "gpu_smoke"):
        modules(name)
    gpu = modules("gpu")
    row = {"peak_bytes": 72_000_000_000, "total_layers": 80, "layers": [2, 4, 40], "measured": False}
    table = "\n".join(gpu.memory_table({"a": row, "b": {**row, "measured": True}, "c": {"error": "no"}}, None))
    assert "| a | 72 GB | extrapolated to 80 layers from 2 and 40 |" in table
    assert "| b | 72 GB | measured, 80 layers |" in table
    assert "| c | not run: no | |" in table


def test_a_row_that_cannot_run_says_why_and_ends_nothing(modules: Any) -> None:
    for name in ("gpu_model", "gpu_rows", "gpu_smoke"):
        modules(name)
    gpu = modules("gpu")

    def broken(*_: Any) -> dict[str, Any]:
        raise ImportError("No module named 'bitsandbytes'")

    gpu.PARTS["resources"] = (*gpu.PARTS["resources"][:2], broken)
    options = type("Options", (), {"device": "cpu"})()
    row = gpu.measured("resources", "lora, 8-bit", gpu.PRESETS["tiny"], options)
    assert row == {"error": "No module named 'bitsandbytes'"}
