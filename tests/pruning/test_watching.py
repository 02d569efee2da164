from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.runs import Poison, adapted_model, num_hooks, train
from tests.thinned import thinned

from loraprune import PruningCallback, PruningConfig
from loraprune.importance.configs import GROUP_CRITERIA
from loraprune.importance.taylor import TaylorCriterion
from loraprune.pruning.errors import TrainingDivergedError
from loraprune.pruning.watching import ListeningCallback
from loraprune.structure.describe import describe

STEPS = 4
NAMES = ("lora", "fisher", "magnitude")


def listening(model: Any, *names: str, bias_correction: bool = True) -> ListeningCallback:
    criteria = {name: GROUP_CRITERIA[name]().build() for name in names}
    return ListeningCallback(criteria, describe(model), decay=0.9, bias_correction=bias_correction)


def heard(folder: Path, *names: str, before: tuple[Any, ...] = (), **changes: Any) -> tuple[ListeningCallback, Any]:
    model = adapted_model()
    callback = listening(model, *names, **changes)
    return callback, train(folder, [*before, callback], model=model, max_steps=STEPS)


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_criterion_hears_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    together, _ = heard(tmp_path, *NAMES)
    assert set(together.scores) == set(NAMES)
    for name in NAMES:
        alone, _ = heard(tmp_path, name)
        assert same(together.scores[name], alone.scores[name])


@pytest.mark.parametrize("criterion", thinned(["lora", "fisher"]))
def test_scores_are_those_that_a_run_with_pruning_averages(tmp_path: Path, criterion: str) -> None:
    callback, _ = heard(tmp_path, *NAMES)
    pruning = PruningCallback(
        PruningConfig(criterion=criterion, cuts=1, prune_end=1.0, repair="none", allocation="uniform")
    )
    train(tmp_path, [pruning], max_steps=STEPS)
    assert pruning.run is not None
    assert pruning.run.records[-1].step == STEPS
    for name, scores in pruning.run.importance.items():
        assert torch.allclose(callback.scores[criterion][name], scores, rtol=1e-5)


def test_listening_changes_no_loss_and_leaves_no_hook(tmp_path: Path) -> None:
    _, outcome = heard(tmp_path, *NAMES)
    plain = train(tmp_path, max_steps=STEPS)
    assert outcome.losses == plain.losses
    assert num_hooks(outcome.model) == num_hooks(plain.model)


def test_without_bias_correction_the_average_keeps_its_start_from_zero(tmp_path: Path) -> None:
    corrected, _ = heard(tmp_path, "fisher")
    plain, _ = heard(tmp_path, "fisher", bias_correction=False)
    for name, values in plain.scores["fisher"].items():
        assert torch.allclose(values, corrected.scores["fisher"][name] * (1 - 0.9**STEPS))


def test_a_step_with_nan_is_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Step 2: NaN or Inf"):
        callback, _ = heard(tmp_path, *NAMES, before=(Poison([2]),))
    assert callback.skipped_steps == [2]
    assert all(bool(torch.isfinite(v).all()) for scores in callback.scores.values() for v in scores.values())


@pytest.mark.filterwarnings("ignore:.*NaN or Inf")
def test_a_run_without_any_usable_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="had no finite score in 4 steps"):
        heard(tmp_path, *NAMES, before=(Poison(range(1, STEPS + 1)),))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_taylor_is_told_how_many_backward_passes_a_step_has(tmp_path: Path, accumulated: int) -> None:
    model = adapted_model()
    taylor = TaylorCriterion()
    callback = ListeningCallback({"taylor": taylor}, describe(model), decay=0.9, bias_correction=True)
    train(tmp_path, [callback], model=model, max_steps=2, gradient_accumulation_steps=accumulated)
    assert taylor.micro_batches == accumulated
