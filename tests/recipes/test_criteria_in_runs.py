"""Every criterion in a whole run of the joint recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.finished_run import QUICK
from tests.thinned import thinned
from tests.zoo import ROWS

from loraprune import PruneResult, PruningConfig, RunOptions, prune
from loraprune.importance.configs import GROUP_CRITERIA
from loraprune.structure.describe import describe

RUNS: dict[str, dict[str, Any]] = {
    "taylor": {"criterion": "taylor"},
    "taylor, accumulated and off-loaded": {"criterion": "taylor", "taylor_form": "mix", "offload_grads": True},
    "taylor, vectorize, product": {"criterion": "taylor", "taylor_form": "vectorize", "group_reduction": "prod"},
    "lora, last": {"criterion": "lora", "group_reduction": "last"},
    "magnitude, max": {"criterion": "magnitude", "group_reduction": "max"},
    "wanda": {"criterion": "wanda"},
    "flap, global": {"criterion": "flap", "allocation": "global"},
    "taylor, blocks": {"criterion": "taylor", "dimensions": ("blocks",)},
    "taylor, hidden": {"criterion": "taylor", "dimensions": ("hidden",)},
    "cut every step": {"cut_every": 1},
}


FIRST = (
    "taylor, accumulated and off-loaded",
    "wanda",
    "flap, global",
    "lora, last",
    "taylor, hidden",
    "cut every step",
)


def run(checkpoint: Path, data: Path, training: dict[str, Any] | None = None, **values: Any) -> PruneResult:
    config = PruningConfig(**{"ratio": 0.5, "calibration_sequences": 8, **values})
    options = RunOptions(latency=False, eval_sequences=2)
    return prune(checkpoint, data, config, training={**QUICK, **(training or {})}, options=options)


@pytest.mark.parametrize("name", thinned(sorted(RUNS, key=lambda name: name not in FIRST), len(FIRST)))
def test_it_reaches_the_ratio(checkpoint: Path, data: Path, name: str) -> None:
    training = {"gradient_accumulation_steps": 2} if "accumulated" in name else {}
    result = run(checkpoint, data, training, **RUNS[name])
    pruning = result.metrics["pruning"]
    group = max(d.parameters_per_group for d in result.structure) / result.structure.prunable_parameters
    assert pruning["ratio"] == pytest.approx(0.5, abs=max(0.02, group / 2))
    assert torch.isfinite(torch.tensor(result.metrics["pruned"]["perplexity"]))


def test_cuts_are_made_every_so_many_steps(checkpoint: Path, data: Path) -> None:
    result = run(checkpoint, data, {"max_steps": 10}, cut_every=2, prune_start=0.1, prune_end=0.8)
    steps = [cut["step"] for cut in result.metrics["pruning"]["cuts"]]
    assert steps == [1, 3, 5, 7, 8]


def test_losses_are_those_of_plain_lora_while_taylor_listens(checkpoint: Path, data: Path) -> None:
    """Until the first cut: base weights that asked for gradients would change clipping and the optimizer."""
    late = {"prune_start": 1.0, "prune_end": 1.0, "cuts": 1, "repair": "none"}
    heard = run(checkpoint, data, criterion="taylor", **late).metrics["history"]
    plain = run(checkpoint, data, ratio=0.0, repair="none").metrics["history"]
    assert [point["loss"] for point in heard] == [point["loss"] for point in plain]


@pytest.mark.parametrize("criterion", ["taylor", "wanda", "flap"])
def test_stacked_experts_are_refused_before_training(criterion: str) -> None:
    structure = describe(next(row for row in ROWS if row.name == "mixtral").model())
    with pytest.raises(ValueError, match=f"criterion '{criterion}' cannot look into stacked experts during training"):
        GROUP_CRITERIA[criterion]().check(structure)
    GROUP_CRITERIA[criterion]().check(structure, while_training=False)


def test_whole_blocks_with_stacked_experts_are_refused_before_training() -> None:
    structure = describe(next(row for row in ROWS if row.name == "mixtral").model(), ["blocks"])
    with pytest.raises(ValueError, match=r"'taylor' cannot look .* whole blocks with such experts"):
        GROUP_CRITERIA["taylor"]().check(structure)
    GROUP_CRITERIA["taylor"]().check(structure, while_training=False)
    GROUP_CRITERIA["fisher"]().check(structure)


@pytest.mark.parametrize(
    "values", [{"taylor_form": "first"}, {"offload_grads": True}, {"group_reduction": "max", "criterion": "wanda"}]
)
def test_an_option_of_another_criterion_is_refused(checkpoint: Path, data: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is an option of the criterion .*'taylor'.*Leave it out"):
        run(checkpoint, data, **values)
