from __future__ import annotations

import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.pruning.criteria import (
    CONSUMER_METHODS,
    GRADIENT_METHODS,
    STRUCTURED_METHODS,
    WEIGHT_METHODS,
    all_groups,
    criterion_of,
)
from tests.zoo import ROWS
from tests.zoo.row import structure_of

from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.importance.baselines import PositionCriterion, RandomCriterion
from loraprune.importance.configs import GROUP_CRITERIA
from loraprune.importance.magnitude import MagnitudeCriterion
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.pruning.gradients import gradient_scores
from loraprune.pruning.oneshot import score_groups
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (9, 14, 9, 30)]
CUT = {"layers.0.heads": [1, 3], "layers.1.channels": [0, 7, 9]}
EVERY_METHOD = pytest.mark.parametrize("method", STRUCTURED_METHODS)


def scores_of(model, structure, method, plan=None, calibration=CALIBRATION, **options):
    def make_pass():
        return LayerwisePass(model, structure, calibration)

    groups = all_groups(structure, method, options.pop("damping", 0.01), plan)
    return score_groups(model, groups, calibration, make_pass, **options)


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], values) for name, values in expected.items())


def test_every_method_is_of_one_sort():
    assert sorted(STRUCTURED_METHODS) == sorted((*GRADIENT_METHODS, *CONSUMER_METHODS, *WEIGHT_METHODS))


@EVERY_METHOD
def test_every_group_that_is_left_has_a_score(method, model, structure):
    plan = Plan.full(structure).keep(CUT)
    slice_(model, structure, Plan.full(structure), plan)
    scores = scores_of(model, structure, method, plan)
    assert {name: len(values) for name, values in scores.items()} == {d.name: plan.count(d.name) for d in structure}
    assert all((torch.isfinite(values) & (values >= 0)).all() for values in scores.values())


@EVERY_METHOD
def test_scores_are_the_same_in_training_mode_and_leave_the_modes_alone(method):
    quiet, model = tiny_model(), tiny_model(attention_dropout=0.5)
    structure = structure_of(model, None)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    actual = scores_of(model, structure, method)
    assert [module.training for module in model.modules()] == modes
    for name, values in scores_of(quiet, structure, method).items():
        torch.testing.assert_close(actual[name], values)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_weights_alone_are_scored_as_by_the_criterion_of_that_name_and_without_data(method, model, structure):
    criterion = {"magnitude": MagnitudeCriterion(), "random": RandomCriterion(7), "position": PositionCriterion()}[
        method
    ]
    criterion.attach(model, structure)
    assert_equal(scores_of(model, structure, method, calibration=(), seed=7), criterion.scores(Plan.full(structure)))


def test_random_scores_follow_the_seed(model, structure):
    first, again, other = (scores_of(model, structure, "random", seed=seed) for seed in (1, 1, 2))
    assert_equal(again, first)
    assert not torch.equal(other["layers.0.heads"], first["layers.0.heads"])


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradients_are_scored_on_the_calibration_data(method, model, structure):
    assert_equal(
        scores_of(model, structure, method),
        gradient_scores(model, structure, Plan.full(structure), CALIBRATION, GROUP_CRITERIA[method]()),
    )


@pytest.mark.parametrize("method", CONSUMER_METHODS)
def test_consumers_are_scored_block_by_block_on_the_model_as_it_is(method, model, structure):
    expected = {}
    layerwise = LayerwisePass(model, structure, CALIBRATION)
    for layer in range(2):
        for d in structure.of_layer(layer):
            expected[d.name] = consumer_scores(criterion_of(method), model, d, d.num_groups, layerwise)
        layerwise.advance()
    assert_equal(scores_of(model, structure, method), expected)


def test_the_damping_is_that_of_the_refit_error(model, structure):
    weak, strong = (scores_of(model, structure, "osscar", damping=damping) for damping in (1e-3, 10.0))
    assert any(not torch.allclose(weak[name], strong[name], rtol=0.1) for name in weak)


@pytest.mark.parametrize("method", CONSUMER_METHODS)
@pytest.mark.parametrize("name", ["t5", "vit", "bloom"])
def test_models_without_a_pass_by_blocks_are_scored_on_whole_runs(name, method):
    row = next(row for row in ROWS if row.name == name)
    model, structure = row.model(), structure_of(row.model(), None)
    seen = []
    scores = score_groups(
        model,
        all_groups(structure, method),
        [row.inputs()],
        lambda: WholeModelPass(model, [row.inputs()]),
        progress=lambda *progress: seen.append(progress),
    )
    assert {key: len(values) for key, values in scores.items()} == {d.name: d.num_groups for d in structure}
    assert all(values.max() > 0 for values in scores.values())
    assert seen == [(done, len(structure.blocks)) for done in range(len(structure.blocks) + 1)]
