"""Runs that DeepSpeed's ZeRO trains; a script for the processes of a launcher, like ``scenarios.py``.

``zero.py MODEL DATA RESULTS JOB [JOB ...]``; a job is JSON: the name of a scenario, a stage of ZeRO, and options.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from tests.processes import scenarios

from loraprune.processes.ranks import OtherProcessError, join, leave, num_processes
from loraprune.recipes.steps import zero


def pretend_() -> None:
    """Let accelerate use DeepSpeed on a CPU, where it leaves it out: gloo is to it what an accelerator's backend is."""
    prepared: Any = ("gloo", DistributedType.MULTI_CPU)
    PartialState._prepare_backend = lambda self, *args, **kwargs: prepared  # type: ignore[method-assign]
    zero._accelerated = lambda: True


def watch_(seen: dict[str, Any]) -> None:
    """See what trains, and how much of the blocks' weights a process holds between two steps."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        usual(self, args, state, control, **kwargs)
        blocks = [value for name, value in kwargs["model"].named_parameters() if ".layers." in name]
        frozen = [value for value in blocks if not value.requires_grad]
        seen["engine"] = type(self._trainer.model_wrapped).__name__
        seen["whole"] = sum(value.numel() for value in frozen)

    usual = zero.StopAtNonFinite.on_step_end
    zero.StopAtNonFinite.on_step_end = on_step_end  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    model, data, results, *jobs = arguments
    pretend_()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    found: list[dict[str, Any]] = []
    seen: dict[str, Any] = {}
    watch_(seen)
    join()
    for job in map(json.loads, jobs):
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = json.dumps({"zero_optimization": job["zero"]})
        seen.clear()
        options = job.get("options", {})
        if "oneshot" not in scenarios.SCENARIOS[job["name"]]:
            options = {**options, "training": {"use_cpu": False, **job.get("training", {})}}
        try:
            result = scenarios.run(job["name"], model, data, processes=num_processes(), **options)
        except (ValueError, OtherProcessError, RuntimeError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        found.append({**result, **seen})
    Path(f"{results}.{os.environ['RANK']}").write_text(json.dumps(found), encoding="utf-8")
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
