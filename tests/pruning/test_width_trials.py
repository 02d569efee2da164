from __future__ import annotations

import copy

import pytest
import torch
from tests.models import tiny_model, token_ids

from loraprune.allocation.measured_widths import WidthTrial
from loraprune.allocation.target import Target
from loraprune.importance.configs import Fisher, Osscar
from loraprune.metrics.divergence import Divergence, held_back
from loraprune.pruning.groups import Groups
from loraprune.pruning.oneshot import prune_
from loraprune.pruning.width_trials import HELD_BACK, try_widths
from loraprune.structure.describe import describe
from loraprune.surgery.repairs import Stream, StreamAndReaders

pytestmark = pytest.mark.usefixtures("enough_tokens")

ROWS = [token_ids(1, 24, seed=seed)[0] for seed in range(16)]


def groups_of(model: torch.nn.Module, criterion=None, allocation: str = "measured") -> Groups:  # type: ignore[no-untyped-def]
    return Groups.all_of(describe(model), Target(ratio=0.4, allocation=allocation), criterion or Osscar())


def test_trials_leave_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    groups = groups_of(model)

    def harm(widths: object, rows: object) -> None:
        for parameter in model.model.layers.parameters():
            parameter.data.mul_(0.9)
        model.model.layers[0].mlp = torch.nn.Identity()

    assert len(try_widths(model, groups, ROWS, harm)) >= 2
    for name, parameter in model.named_parameters():
        assert (id(parameter), True) == (before[name][0], torch.equal(parameter, before[name][1])), name


def test_a_trial_that_fails_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    layers = model.model.layers

    def fail(widths: object, rows: object) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        try_widths(model, groups_of(model), ROWS, fail)
    assert model.model.layers is layers


@pytest.mark.parametrize("criterion", [Osscar(), Fisher()], ids=lambda criterion: criterion.name)
@pytest.mark.parametrize("repair", [Stream(), StreamAndReaders()], ids=lambda repair: repair.name)
def test_the_widths_are_those_of_the_trial_that_changed_the_model_least(criterion, repair) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model("llama")
    dense = copy.deepcopy(model)
    groups = groups_of(model, criterion)
    prune_(model, groups, ROWS, repair=repair)
    best, *others = groups.trials
    assert others
    for kind, width in best.widths.items():
        assert {len(groups.plan.kept[d.name]) // d.strata for d in groups.structure.of_kind(kind)} == {width}

    fitted, judging = held_back(ROWS, HELD_BACK)
    for trial in groups.trials:  # each again, by itself
        again = copy.deepcopy(dense)
        single = groups_of(again, criterion, "balanced")
        single.trials = (WidthTrial(trial.widths, 0.0),)
        prune_(again, single, fitted[::3], repair=repair)
        assert Divergence(dense, judging).of(again) == pytest.approx(trial.divergence, rel=1e-3)


def test_several_cuts_end_at_the_widths_that_were_measured() -> None:
    model = tiny_model("llama")
    groups = groups_of(model)
    records = prune_(model, groups, ROWS, repair=Stream(), cuts=3)
    assert {kind: counts[0] for kind, counts in records[-1].widths.items()} == dict(groups.trials[0].widths)
