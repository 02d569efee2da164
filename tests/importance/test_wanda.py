from __future__ import annotations

import numpy as np
import pytest
import torch

from loraprune.importance.wanda import wanda_group_scores


def case(groups=5, size=3, others=2, rows=7, seed=0):
    """A weight, inputs of different sizes, and groups scattered over the columns; some columns are of no group."""
    random = np.random.default_rng(seed)
    width = groups * size + others
    inputs = random.normal(size=(50, width)) * random.uniform(0.1, 3, width)
    positions = random.permutation(width)[: groups * size].reshape(groups, size)
    return random.normal(size=(rows, width)), inputs, positions


def tensors(weight, inputs, positions):
    return torch.tensor(weight).float(), torch.tensor((inputs**2).mean(0)).float(), torch.tensor(positions)


@pytest.mark.parametrize("size", [1, 4])
def test_a_score_adds_up_weights_times_root_mean_square_inputs(size):
    weight, inputs, positions = case(size=size)
    scores = wanda_group_scores(*tensors(weight, inputs, positions))
    assert scores.dtype == torch.float32
    for group, columns in enumerate(positions):
        expected = 0.0
        for column in columns:
            root = sum(x**2 for x in inputs[:, column]) / len(inputs)
            expected += sum(abs(w) for w in weight[:, column]) * root**0.5
        assert scores[group].item() == pytest.approx(expected, rel=1e-5)


def test_the_order_of_groups_and_of_columns_makes_no_difference():
    weight, moment, positions = tensors(*case())
    scores = wanda_group_scores(weight, moment, positions)
    assert torch.equal(wanda_group_scores(weight, moment, positions.flip(0)), scores.flip(0))
    shuffled = torch.randperm(weight.shape[1])
    moved = shuffled.argsort()[positions]
    torch.testing.assert_close(wanda_group_scores(weight[:, shuffled], moment[shuffled], moved), scores)


def test_a_group_without_input_or_without_weights_scores_zero():
    weight, moment, positions = tensors(*case())
    weight[:, positions[1]] = 0
    moment[positions[3]] = 0
    assert (wanda_group_scores(weight, moment, positions) == 0).tolist() == [False, True, False, True, False]


def test_the_arguments_stay_as_they_are():
    arguments = tensors(*case())
    copies = [argument.clone() for argument in arguments]
    wanda_group_scores(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(arguments, copies, strict=True))


def test_weights_of_16_bits_are_added_up_in_32():
    weight = torch.ones(3000, 1, dtype=torch.bfloat16)
    assert wanda_group_scores(weight, torch.ones(1), torch.tensor([[0]])).tolist() == [3000]
