from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraprune.importance.flap import bias_of_removed, flap_group_scores, standardized


def case(groups=5, size=3, others=2, rows=7, seed=0):
    """A weight, inputs that are not centered, and groups scattered over the columns; some columns are of no group."""
    random = np.random.default_rng(seed)
    width = groups * size + others
    inputs = random.normal(size=(50, width)) * random.uniform(0.1, 3, width) + random.normal(size=width)
    positions = random.permutation(width)[: groups * size].reshape(groups, size)
    return random.normal(size=(rows, width)), inputs, positions


def tensors(weight, inputs, positions):
    return torch.tensor(weight).float(), torch.tensor(inputs.var(0)).float(), torch.tensor(positions)


@pytest.mark.parametrize("size", [1, 4])
def test_a_score_adds_up_variances_times_squared_column_norms(size):
    weight, inputs, positions = case(size=size)
    scores = flap_group_scores(*tensors(weight, inputs, positions))
    assert scores.dtype == torch.float32
    for group, columns in enumerate(positions):
        expected = 0.0
        for column in columns:
            mean = sum(inputs[:, column]) / len(inputs)
            variance = sum((x - mean) ** 2 for x in inputs[:, column]) / len(inputs)
            expected += variance * sum(w**2 for w in weight[:, column])
        assert scores[group].item() == pytest.approx(expected, rel=1e-5)


def test_the_score_of_a_column_is_the_error_that_its_removal_leaves_once_the_bias_makes_up_for_its_mean():
    weight, inputs, _ = case()
    column = 4
    wanted, after = inputs @ weight.T, np.delete(inputs, column, 1) @ np.delete(weight, column, 1).T
    arguments = torch.tensor(weight), torch.tensor(inputs.mean(0)), torch.tensor([column])
    error = np.square(wanted - after - bias_of_removed(*arguments).numpy()).sum(1).mean()
    scores = flap_group_scores(*tensors(weight, inputs, np.array([[column]])))
    assert scores.item() == pytest.approx(error, rel=1e-5)


def test_the_order_of_groups_and_of_columns_makes_no_difference():
    weight, variance, positions = tensors(*case())
    scores = flap_group_scores(weight, variance, positions)
    assert torch.equal(flap_group_scores(weight, variance, positions.flip(0)), scores.flip(0))
    shuffled = torch.randperm(weight.shape[1])
    moved = shuffled.argsort()[positions]
    torch.testing.assert_close(flap_group_scores(weight[:, shuffled], variance[shuffled], moved), scores)


def test_a_variance_that_rounding_left_below_zero_counts_as_zero():
    scores = flap_group_scores(torch.ones(2, 2), torch.tensor([-1e-7, 1.0]), torch.tensor([[0], [1]]))
    assert scores.tolist() == [0, pytest.approx(2)]


def test_the_arguments_stay_as_they_are():
    weight, variance, positions = tensors(*case())
    arguments = [weight, variance, positions]
    copies = [argument.clone() for argument in arguments]
    standardized(flap_group_scores(*arguments))
    bias_of_removed(weight, variance, positions[0])
    assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_standardized_scores_have_mean_zero_and_the_standard_deviation_of_a_sample_divided_out(size):
    scores = np.random.default_rng(0).gamma(1.0, size=40)
    expected = (scores - scores.mean()) / scores.std(ddof=1)
    np.testing.assert_allclose(standardized(torch.tensor(scores * size).float()).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e20])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_scores_that_are_all_the_same_are_standardized_to_zero(value, count):
    assert standardized(torch.full((count,), value)).tolist() == [0] * count


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True),
    st.floats(0.01, 100),
    st.integers(-50, 50),
)
def test_standardized_scores_keep_their_order_and_forget_scale_and_shift(values, scale, shift):
    scores = torch.tensor(values, dtype=torch.float32)
    after = standardized(scores)
    assert after.argsort().tolist() == scores.argsort().tolist()
    torch.testing.assert_close(standardized(scores * scale + shift), after, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("as_mask", [False, True])
def test_the_bias_keeps_the_mean_of_the_output(as_mask):
    weight, inputs, _ = case()
    removed = np.array([1, 4, 5, 11])
    kept = np.setdiff1d(np.arange(weight.shape[1]), removed)
    columns = torch.tensor(np.isin(np.arange(weight.shape[1]), removed) if as_mask else removed)
    bias = bias_of_removed(torch.tensor(weight).float(), torch.tensor(inputs.mean(0)).float(), columns)
    assert bias.dtype == torch.float32
    mean = (inputs[:, kept] @ weight[:, kept].T).mean(0) + bias.numpy()
    np.testing.assert_allclose(mean, (inputs @ weight.T).mean(0), rtol=1e-5, atol=1e-5)


def test_where_nothing_is_removed_the_bias_is_zero():
    assert bias_of_removed(torch.ones(3, 4), torch.ones(4), torch.tensor([], dtype=torch.long)).tolist() == [0, 0, 0]
