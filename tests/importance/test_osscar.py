from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraprune.calibration.least_squares import NotPositiveDefiniteError, refit_columns
from loraprune.importance import osscar
from loraprune.importance.osscar import osscar_group_scores

SHAPES = pytest.mark.parametrize(
    ("groups", "size", "others"), [(12, 1, 0), (10, 1, 3), (6, 4, 0), (5, 4, 2)], ids=["channels", "+3", "heads", "+2"]
)


def case(groups, size, others=0, rows=5, tokens=200, seed=0):
    """A weight, correlated inputs of different sizes, and groups scattered over the columns."""
    random = np.random.default_rng(seed)
    width = groups * size + others
    mixed = random.normal(size=(width, width)) / width**0.5 + np.eye(width)
    inputs = random.normal(size=(tokens, width)) @ mixed * random.uniform(0.3, 2, width)
    positions = random.permutation(width)[: groups * size].reshape(groups, size)
    return random.normal(size=(rows, width)), inputs, positions


def scores_of(weight, inputs, positions, damping):
    moment = torch.tensor(inputs.T @ inputs / len(inputs))
    return osscar_group_scores(torch.tensor(weight), moment, torch.tensor(positions), damping)


def refit_error(weight, inputs, removed, damping):
    """Least error with some columns gone: plain least squares on the inputs and, for the ridge, on rows of its own."""
    width = weight.shape[1]
    ridge = np.sqrt(damping * (inputs**2).mean()) * np.eye(width)
    rows = np.concatenate([inputs / np.sqrt(len(inputs)), ridge])
    kept = np.setdiff1d(np.arange(width), removed)
    wanted = rows @ weight.T
    solution = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0]
    return np.square(wanted - rows[:, kept] @ solution).sum()


def brute_force(weight, inputs, positions, damping):
    """Order of removal and total error after each, with every candidate of every round solved from scratch."""
    order, totals = [], []
    while len(order) < len(positions):
        candidates = {
            group: refit_error(weight, inputs, positions[[*order, group]].flatten(), damping)
            for group in range(len(positions))
            if group not in order
        }
        order.append(min(candidates, key=candidates.get))
        totals.append(candidates[order[-1]])
    return order, np.array(totals)


@SHAPES
@pytest.mark.parametrize("damping", [1e-8, 0.01, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_every_round_removes_the_group_whose_removal_leaves_the_least_refit_error(groups, size, others, damping, seed):
    weight, inputs, positions = case(groups, size, others, seed=seed)
    order, totals = brute_force(weight, inputs, positions, damping)
    scores = scores_of(weight, inputs, positions, damping)
    assert scores.argsort().tolist() == order
    expected = np.maximum.accumulate(np.diff(totals, prepend=0))
    np.testing.assert_allclose(scores.sort().values.numpy(), expected, rtol=1e-4)


@SHAPES
def test_scores_add_up_to_the_refit_error_while_every_removal_costs_more_than_the_one_before(groups, size, others):
    weight, inputs, positions = case(groups, size, others, rows=40)
    order, totals = brute_force(weight, inputs, positions, 0.01)
    rising = np.diff(totals, prepend=0)
    count = int(np.argmax(np.append(np.diff(rising) < 0, True))) + 1
    assert count > 2
    scores = scores_of(weight, inputs, positions, 0.01)[order].double()
    np.testing.assert_allclose(scores.cumsum(0)[:count].numpy(), totals[:count], rtol=1e-4)
    assert (scores.cumsum(0).numpy() >= totals * (1 - 1e-4)).all()


def test_the_error_is_that_of_the_refit_that_the_cut_makes():
    weight, inputs, positions = case(20, 1, rows=60)
    scores = scores_of(weight, inputs, positions, 1e-9)
    removed = positions[scores.argsort()[:8].numpy()].flatten()
    kept = np.setdiff1d(np.arange(20), removed)
    moment = torch.tensor(inputs.T @ inputs / len(inputs))
    after = refit_columns(torch.tensor(weight), moment, torch.tensor(kept), 1e-9).numpy()
    error = np.square(inputs @ weight.T - inputs[:, kept] @ after.T).sum(1).mean()
    assert refit_error(weight, inputs, removed, 1e-9) == pytest.approx(error, rel=1e-5)
    assert scores.sort().values[:8].double().sum().item() == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_removing_several_groups_a_round_costs_little_more_than_one_by_one(monkeypatch, size):
    weight, inputs, positions = case(60, size, rows=30, tokens=1000)
    one_by_one = scores_of(weight, inputs, positions, 0.01).argsort().numpy()
    monkeypatch.setattr(osscar, "MOST_ROUNDS", 8)
    together = scores_of(weight, inputs, positions, 0.01).argsort().numpy()
    assert sorted(together) == list(range(60))
    assert together.tolist() != one_by_one.tolist()
    for count in (10, 30, 45):
        best, other = (
            refit_error(weight, inputs, positions[order[:count]].flatten(), 0.01) for order in (one_by_one, together)
        )
        assert other <= 1.05 * best


def test_scores_of_several_groups_a_round_add_up_to_their_joint_error(monkeypatch):
    monkeypatch.setattr(osscar, "MOST_ROUNDS", 4)
    weight, inputs, positions = case(22, 2, rows=60)
    scores = scores_of(weight, inputs, positions, 0.01)
    order = scores.argsort().numpy()
    totals = [refit_error(weight, inputs, positions[order[: k + 1]].flatten(), 0.01) for k in range(len(order))]
    expected = np.maximum.accumulate(np.diff(totals, prepend=0))
    np.testing.assert_allclose(scores[order].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("rounds", [4, 256])
def test_of_groups_that_stand_in_for_each_other_one_stays(monkeypatch, rounds):
    monkeypatch.setattr(osscar, "MOST_ROUNDS", rounds)
    weight, inputs, _ = case(20, 1)
    weight, inputs = np.tile(weight, 2), np.tile(inputs, 2)
    order = scores_of(weight, inputs, np.arange(40)[:, None], 1e-6).argsort()
    assert sorted((order[:20] % 20).tolist()) == list(range(20))


def test_more_groups_than_rounds_are_all_removed(monkeypatch):
    rounds = []
    choose = osscar._Elimination.choose
    monkeypatch.setattr(osscar._Elimination, "choose", lambda *a: rounds.append(a) or choose(*a))
    weight, inputs, positions = case(300, 1, rows=3, tokens=600)
    scores = scores_of(weight, inputs, positions, 0.01)
    assert len(rounds) == 150
    assert len(scores.unique()) == 300


@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 3),
    damping=st.floats(1e-4, 10),
    tokens=st.integers(2, 40),
    wide=st.booleans(),
)
def test_scores_are_finite_positive_and_all_different(seed, size, damping, tokens, wide):
    weight, inputs, positions = case(9, size, 2, tokens=tokens, seed=seed)
    weight[:, positions[4]] = 0
    inputs[:, positions[6]] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(osscar, "WIDEST_IN_64_BITS", 10 if wide else 2048)
        scores = scores_of(weight, inputs, positions, damping)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert (scores > 0).all()
    assert len(scores.unique()) == 9
    assert scores.argmin().item() == 4


def test_groups_of_no_weight_at_all_get_different_scores():
    weight, inputs, positions = case(8, 2)
    scores = scores_of(0 * weight, inputs, positions, 0.01)
    assert len(scores.unique()) == 8
    assert torch.isfinite(scores).all()


def test_wide_layers_in_32_bits_get_nearly_the_same_scores(monkeypatch):
    weight, inputs, positions = case(40, 2, rows=30)
    expected = scores_of(weight, inputs, positions, 0.01)
    monkeypatch.setattr(osscar, "WIDEST_IN_64_BITS", 79)
    actual = scores_of(weight, inputs, positions, 0.01)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)
    assert not torch.equal(actual, expected)


@pytest.mark.parametrize("size", [1, 3])
def test_the_order_of_groups_and_of_columns_makes_no_difference(size):
    weight, inputs, positions = case(9, size, 2)
    scores = scores_of(weight, inputs, positions, 0.01)
    torch.testing.assert_close(scores_of(weight, inputs, positions[::-1].copy(), 0.01), scores.flip(0))
    shuffled = np.random.default_rng(1).permutation(weight.shape[1])
    moved = shuffled.argsort()[positions]
    torch.testing.assert_close(scores_of(weight[:, shuffled], inputs[:, shuffled], moved, 0.01), scores)
    torch.testing.assert_close(scores_of(weight, inputs, positions[:, ::-1].copy(), 0.01), scores)


def test_the_arguments_stay_as_they_are():
    weight, inputs, positions = case(6, 2)
    for dtype in (torch.float32, torch.float64):
        arguments = [torch.tensor(weight).to(dtype), torch.tensor(inputs.T @ inputs).to(dtype), torch.tensor(positions)]
        copies = [argument.clone() for argument in arguments]
        osscar_group_scores(*arguments, 0.01)
        assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


def dampings_tried(monkeypatch):
    tried = []
    damped = osscar.damped_cholesky
    monkeypatch.setattr(osscar, "damped_cholesky", lambda m, d: tried.append(d) or damped(m, d))
    return tried


@pytest.mark.parametrize(("damping", "raised"), [(0.003, [0.03, 0.3]), (0.0, [0.001, 0.01])])
def test_damping_is_raised_where_rounding_breaks_the_elimination(monkeypatch, damping, raised):
    tried = dampings_tried(monkeypatch)
    run = osscar._Elimination.run
    monkeypatch.setattr(osscar._Elimination, "run", lambda self: run(self) if len(tried) > 2 else None)
    weight, inputs, positions = case(8, 2)
    scores = scores_of(weight, inputs, positions, damping)
    assert tried == pytest.approx([damping, *raised])
    torch.testing.assert_close(scores, scores_of(weight, inputs, positions, raised[-1]))


@pytest.mark.parametrize("size", [1, 2])
def test_an_inverse_that_is_not_positive_definite_breaks_the_elimination(size):
    inverse = torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0]))
    assert osscar._Elimination(torch.ones(3, 4), inverse, 4 // size, size).run() is None


def test_a_singular_moment_without_damping_is_damped():
    weight, inputs, positions = case(10, 1, tokens=3)
    inputs[:, 0] = 0
    scores = scores_of(weight, inputs, positions, 0.0)
    assert torch.isfinite(scores).all()
    assert len(scores.unique()) == 10


@pytest.mark.parametrize(
    "moment",
    [torch.zeros(4, 4), torch.full((4, 4), torch.nan), -torch.eye(4), torch.diag(torch.tensor([1.0, -9.0, 9.0, 1.0]))],
    ids=["zero", "nan", "negative", "indefinite"],
)
def test_a_moment_that_is_not_positive_definite_is_refused(moment):
    with pytest.raises(NotPositiveDefiniteError):
        osscar_group_scores(torch.ones(2, 4), moment, torch.arange(4)[:, None], 0.01)


def test_an_elimination_that_no_damping_helps_is_refused(monkeypatch):
    monkeypatch.setattr(osscar._Elimination, "run", lambda self: None)
    with pytest.raises(NotPositiveDefiniteError, match="too close to singular"):
        osscar_group_scores(torch.ones(2, 4), torch.eye(4), torch.arange(4)[:, None], 0.01)


@pytest.mark.parametrize("rounds", [100, 300])
def test_columns_that_are_subtracted_together_go_in_the_order_of_those_that_are_subtracted_at_once(monkeypatch, rounds):
    monkeypatch.setattr(osscar, "MOST_ROUNDS", rounds)
    weight, inputs, positions = case(300, 1, others=2, rows=30, tokens=900)
    together = scores_of(weight, inputs, positions, 0.01)
    monkeypatch.setattr(osscar, "_MOST_PUT_BY", 0)
    at_once = scores_of(weight, inputs, positions, 0.01)
    assert together.argsort().tolist() == at_once.argsort().tolist()
    torch.testing.assert_close(together, at_once)
