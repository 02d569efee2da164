from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.cli.conftest import Command

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.12 GiB is free."
)
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError(CUDA), "The GPU's memory ran out (2.50 GiB more were needed)."),
        (RuntimeError(f"{CPU}4000000000 bytes. Error code 12"), "machine's memory ran out (4 GB more were needed)."),
        (MemoryError(), "The machine's memory ran out."),
    ],
    ids=["GPU", "CPU", "Python"],
)
@pytest.mark.parametrize(
    ("command", "place", "remedy"),
    [
        (["eval", "demo", "--ppl", "demo"], "loraprune.measure.evaluation.evaluate.evaluate", "Use --batch-size 1"),
        (
            ["oneshot", "demo", "--data", "demo", "--ratio", "0.5", "-o", "out"],
            "loraprune.recipes.oneshot._run",
            "Use --offload",
        ),
        (["prune", "demo", "--data", "demo", "-o", "out"], "loraprune.recipes.prune.prepare", "--load-in-4bit"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_memory_that_runs_out_ends_in_one_line(
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    message: str,
    command: list[str],
    place: str,
    remedy: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    finished = run(*command)
    assert finished.code == 1
    last = " ".join(finished.err.split())
    assert message in last
    assert remedy in last
    assert "Traceback" not in finished.err


def test_other_errors_of_torch_keep_their_traceback(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("loraprune.recipes.oneshot._run", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run("oneshot", "demo", "--data", "demo", "--ratio", "0.5", "-o", "out")
