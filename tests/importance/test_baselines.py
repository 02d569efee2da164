from __future__ import annotations

import torch

from loraprune.importance.baselines import RandomCriterion
from loraprune.structure.plan import Plan


def random_scores(structure, seed, plan=None):
    criterion = RandomCriterion(seed)
    criterion.attach(torch.nn.Identity(), structure)
    return criterion.scores(plan or Plan.full(structure))


def test_the_seed_decides_the_scores(structure):
    one, same, other = (random_scores(structure, seed) for seed in (1, 1, 2))
    for name, values in one.items():
        assert torch.equal(values, same[name])
        assert not torch.equal(values, other[name])


def test_dimensions_of_one_size_get_different_scores(structure):
    scores = random_scores(structure, 0)
    assert not torch.equal(scores["layers.0.heads"], scores["layers.1.heads"])
    assert not torch.equal(scores["layers.0.channels"], scores["layers.1.channels"])


def test_a_group_keeps_its_score_over_all_cuts(structure):
    full = Plan.full(structure)
    before = random_scores(structure, 0, full)
    plan = full.keep({"layers.0.channels": [3, 5, 20]}).keep({"layers.0.channels": [0, 2]})
    after = random_scores(structure, 0, plan)
    assert torch.equal(after["layers.0.channels"], before["layers.0.channels"][[3, 20]])
    assert torch.equal(after["layers.1.channels"], before["layers.1.channels"])


def test_the_global_random_state_is_left_alone(structure):
    state = torch.get_rng_state()
    random_scores(structure, 0)
    assert torch.equal(torch.get_rng_state(), state)
