from __future__ import annotations

import numpy as np
import pytest
import torch

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


def column_scores(weight, inputs):
    """Variance of a column's inputs times the square of its norm, in plain Python."""
    scores = []
    for column in range(weight.shape[1]):
        mean = sum(inputs[:, column]) / len(inputs)
        variance = sum((x - mean) ** 2 for x in inputs[:, column]) / len(inputs)
        scores.append(variance * sum(w**2 for w in weight[:, column]))
    return scores


@pytest.mark.parametrize("size", [1, 4])
def test_a_score_adds_up_variances_times_squared_norms_in_units_of_their_deviation(size):
    weight, inputs, positions = case(size=size)
    scores = flap_group_scores(*tensors(weight, inputs, positions))
    assert scores.dtype == torch.float32
    columns = np.array(column_scores(weight, inputs)) ** (2 if size > 1 else 1)
    expected = columns[positions].sum(1) / columns[positions].std(ddof=1)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4)


def test_columns_are_in_the_order_of_the_errors_that_their_removal_leaves_once_the_bias_makes_up_for_the_mean():
    weight, inputs, _ = case()
    wanted, errors = inputs @ weight.T, []
    for column in range(weight.shape[1]):
        after = np.delete(inputs, column, 1) @ np.delete(weight, column, 1).T
        arguments = torch.tensor(weight), torch.tensor(inputs.mean(0)), torch.tensor([column])
        errors.append(np.square(wanted - after - bias_of_removed(*arguments).numpy()).sum(1).mean())
    scores = flap_group_scores(*tensors(weight, inputs, np.arange(weight.shape[1])[:, None]))
    np.testing.assert_allclose(scores.numpy(), np.array(errors) / np.std(errors, ddof=1), rtol=1e-4)


def test_the_order_of_groups_and_of_columns_makes_no_difference():
    weight, variance, positions = tensors(*case())
    scores = flap_group_scores(weight, variance, positions)
    assert torch.equal(flap_group_scores(weight, variance, positions.flip(0)), scores.flip(0))
    shuffled = torch.randperm(weight.shape[1])
    moved = shuffled.argsort()[positions]
    torch.testing.assert_close(flap_group_scores(weight[:, shuffled], variance[shuffled], moved), scores)


def test_a_variance_that_rounding_left_below_zero_counts_as_zero():
    scores = flap_group_scores(torch.ones(2, 2), torch.tensor([-1e-7, 1.0]), torch.tensor([[0], [1]]))
    assert scores.tolist() == [0, pytest.approx(2**0.5)]


def test_the_arguments_stay_as_they_are():
    weight, variance, positions = tensors(*case())
    arguments = [weight, variance, positions]
    copies = [argument.clone() for argument in arguments]
    standardized(flap_group_scores(*arguments), 3)
    bias_of_removed(weight, variance, positions[0])
    assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_a_standardized_score_is_the_mean_of_the_standardized_columns_of_a_group(size, scale):
    weight, inputs, positions = case(groups=6, size=size)
    columns = np.array(column_scores(weight, inputs))[positions] ** (2 if size > 1 else 1)
    expected = ((columns - columns.mean()) / columns.std(ddof=1)).mean(1)
    weight, variance, positions = tensors(weight, inputs, positions)
    found = standardized(flap_group_scores(weight, variance * scale, positions), size)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_a_head_close_to_the_others_outranks_the_least_of_many_channels():
    # A deviation over the heads themselves would give the last of three heads about -1 in every layer.
    heads = flap_group_scores(torch.ones(1, 12), torch.tensor([1.0, 5, 1, 5, 1, 5, 1, 5, 1, 4.9, 1, 5]), groups_of(4))
    channels = flap_group_scores(torch.ones(1, 12), torch.arange(12.0), groups_of(1))
    assert standardized(heads, 4).min() > standardized(channels, 1).min()


def groups_of(size):
    return torch.arange(12).view(-1, size)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e20])
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("size", [1, 2])
def test_scores_that_are_all_the_same_are_standardized_to_zero(value, count, size):
    positions = torch.arange(count * size).view(count, size)
    scores = flap_group_scores(torch.ones(1, count * size), torch.full((count * size,), value), positions)
    assert standardized(scores, size).tolist() == [0] * count


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
