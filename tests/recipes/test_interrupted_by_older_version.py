"""A run that an older version began: this one goes on from its folder.

``interrupted_run`` is what the version before the modules moved (commit 4ba1f31) left when it was stopped after 6 of 12
steps, between two cuts. What the Trainer keeps in pickles stands there as JSON and safetensors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import tiny_checkpoint, write_texts

from loraprune import PruneResult, PruningConfig, RunOptions, prune

LEFT = Path(__file__).parent / "interrupted_run"

CONFIG = PruningConfig(ratio=0.5, calibration_sequences=8, prune_end=0.8, cuts=3)
TRAINING: dict[str, Any] = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "max_length": 32,
    "logging_steps": 1,
    "bf16": False,
    "seed": 11,
    "learning_rate": 1e-4,
    "warmup_steps": 0,
}


def unpacked(folder: Path) -> Path:
    """The folder as the Trainer left it."""
    shutil.copytree(LEFT, folder)
    checkpoint = folder / "checkpoint-6"
    values = json.loads((checkpoint / "trainer.json").read_text())
    tensors = load_file(checkpoint / "trainer.safetensors")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, field = name.split("/")
            state.setdefault(int(number), {})[field] = value
    groups = [group | {"betas": tuple(group["betas"])} for group in values["optimizer"]["param_groups"]]
    torch.save({"state": state, "param_groups": groups}, checkpoint / "optimizer.pt")
    torch.save(values["scheduler"], checkpoint / "scheduler.pt")
    version, numbers, gauss = values["rng"]["python"]
    kind, _, *rest = values["rng"]["numpy"]
    generators = {
        "python": (version, tuple(numbers), gauss),
        "numpy": (kind, tensors["rng/numpy"].numpy().astype(np.uint32), *rest),
        "cpu": tensors["rng/cpu"],
    }
    torch.save(generators, checkpoint / "rng_state.pth")
    return folder


def run(output: Path, *, resume: bool) -> PruneResult:
    options = RunOptions(output=output, latency=False, resume=resume)
    return prune("tiny-llama", "texts.jsonl", CONFIG, training=TRAINING, options=options)


@pytest.mark.usefixtures("enough_tokens")  # that version held no repair back
def test_it_ends_as_a_run_that_nobody_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tiny_checkpoint(Path("tiny-llama"))
    write_texts(Path("texts.jsonl"), count=80)
    unpacked(Path("out.run"))
    resumed, whole = run(Path("out"), resume=True), run(Path("whole"), resume=False)
    assert [cut["step"] for cut in resumed.metrics["pruning"]["cuts"]] == [1, 5, 10]
    assert resumed.plan == whole.plan
    # The folder may come from another processor, whose sums round otherwise.
    for ours, theirs in zip(resumed.metrics["history"], whole.metrics["history"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    for (name, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
