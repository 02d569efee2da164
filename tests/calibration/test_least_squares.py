from __future__ import annotations

import numpy as np
import pytest
import torch

from loraprune.calibration.least_squares import LEAST_RAISED_DAMPING, NotPositiveDefiniteError, damped_cholesky


@pytest.mark.parametrize("damping", [0.0, 0.01, 3.0])
def test_the_factor_is_that_of_the_moment_with_a_share_of_its_mean_diagonal_on_top(damping):
    inputs = np.random.default_rng(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6]
    moment = inputs.T @ inputs
    given = torch.tensor(moment)
    factor, used = damped_cholesky(given, damping)
    expected = np.linalg.cholesky(moment + damping * np.diag(moment).mean() * np.eye(6))
    np.testing.assert_allclose(factor.numpy(), expected, rtol=1e-10)
    assert used == damping
    assert np.array_equal(given.numpy(), moment)


@pytest.mark.parametrize(
    ("damping", "lowest", "expected"),
    [(0.001, -0.005, 0.01), (0.001, -0.05, 0.1), (0.001, -0.5, 1.0), (0.0, -5e-4, 10 * LEAST_RAISED_DAMPING)],
)
def test_damping_is_raised_tenfold_until_it_is_enough(damping, lowest, expected):
    diagonal = torch.full((1000,), 1.0, dtype=torch.float64)
    diagonal[7] = lowest
    factor, used = damped_cholesky(torch.diag(diagonal), damping)
    assert used == pytest.approx(expected)
    torch.testing.assert_close(factor.diagonal().square(), diagonal + used * diagonal.mean())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_moment_that_is_not_finite_beside_its_diagonal_is_refused(value):
    moment = torch.eye(4)
    moment[0, 3] = moment[3, 0] = value
    with pytest.raises(NotPositiveDefiniteError):
        damped_cholesky(moment, 0.01)


@pytest.mark.parametrize("moment", [torch.zeros(3, 3), -torch.eye(3), torch.diag(torch.tensor([9.0, 9.0, -15.0]))])
def test_a_moment_that_a_thousandfold_damping_does_not_help_is_refused(moment):
    with pytest.raises(NotPositiveDefiniteError):
        damped_cholesky(moment, 1e-3)
