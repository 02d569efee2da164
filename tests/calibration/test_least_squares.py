from __future__ import annotations

import numpy as np
import pytest
import torch

from loraprune.calibration import least_squares
from loraprune.calibration.least_squares import (
    LEAST_RAISED_DAMPING,
    Moments,
    NotPositiveDefiniteError,
    damped_cholesky,
    held_back_columns,
    refit_columns,
)


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


ROWS, IN, OUT = 400, 12, 5
KEPT = torch.tensor([0, 1, 3, 4, 6, 7, 8, 11])


def problem(drift: float, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer, its inputs, and what it should give: what it gave, something more of its inputs, and noise."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(IN, IN, generator=generator)
    inputs = torch.randn(ROWS, IN, generator=generator) @ mixed
    weight, more = (torch.randn(OUT, IN, generator=generator) for _ in range(2))
    wanted = inputs @ (weight + drift * more).T + noise * torch.randn(ROWS, OUT, generator=generator)
    return weight, inputs, wanted


def moments_of(inputs: torch.Tensor, wanted: torch.Tensor, rows: slice) -> Moments:
    x, t = inputs[rows], wanted[rows]
    return Moments(x.T @ x / len(x), len(x), t.T @ x / len(x), float(t.square().sum()) / len(x))


def fitted(weight: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor, damping: float = 1e-4) -> torch.Tensor:
    def part(rows: slice) -> Moments:
        return moments_of(inputs, wanted, rows)

    found = held_back_columns(weight, part(slice(0, ROWS)), KEPT, damping, part)
    assert found is not None
    return found


def test_what_a_layer_gave_itself_is_refitted_as_ever() -> None:
    weight, inputs, wanted = problem(drift=0.0, noise=0.0)
    expected = refit_columns(weight, inputs.T @ inputs / ROWS, KEPT, 1e-4)
    torch.testing.assert_close(fitted(weight, inputs, wanted), expected, rtol=1e-3, atol=1e-3)


def test_columns_that_go_are_not_fitted_by_inputs_that_know_nothing_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(ROWS, IN, generator=generator), torch.randn(OUT, IN, generator=generator)
    change = fitted(weight, inputs, inputs @ weight.T) - weight[:, KEPT]
    overfit = refit_columns(weight, inputs.T @ inputs / ROWS, KEPT, 1e-4) - weight[:, KEPT]
    assert change.norm() < 0.75 * overfit.norm()


def test_what_the_inputs_can_make_up_for_is_made_up_for() -> None:
    weight, inputs, wanted = problem(drift=1.0, noise=0.1)
    best = torch.linalg.lstsq(inputs[:, KEPT], wanted).solution.T
    own = refit_columns(weight, inputs.T @ inputs / ROWS, KEPT, 1e-4)
    columns = (fitted(weight, inputs, wanted), best, own)
    error, least, without = ((inputs[:, KEPT] @ each.T - wanted).square().mean() for each in columns)
    assert error < least + 0.05 * (without - least)


def test_noise_that_went_before_is_not_fitted() -> None:
    weight, inputs, wanted = problem(drift=0.0, noise=300.0)
    own = refit_columns(weight, inputs.T @ inputs / ROWS, KEPT, 1e-4)
    whole = refit_columns(weight, inputs.T @ inputs / ROWS, KEPT, 1e-4, wanted.T @ inputs / ROWS)
    assert (fitted(weight, inputs, wanted) - own).norm() < 0.5 * (whole - own).norm()


def wide_problem(noise: float, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Few rows, many outputs that depend on the inputs of the layer, and noise."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(ROWS, IN, generator=generator) @ torch.randn(IN, IN, generator=generator)
    weight = torch.randn(outputs, IN, generator=generator)
    drift = torch.randn(outputs, IN, generator=generator)
    wanted = inputs @ (weight + 0.3 * drift).T + noise * torch.randn(ROWS, outputs, generator=generator)
    return weight, inputs, wanted


@pytest.mark.parametrize("noise", [0.1, 3.0, 10.0, 300.0])
def test_ridges_tried_on_sums_of_outputs_fit_as_well_as_those_tried_on_all(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, inputs, wanted = wide_problem(noise, outputs=3 * least_squares.OUTPUTS_TRIED)
    mixed = fitted(weight, inputs, wanted)
    again = fitted(weight, inputs, wanted)
    monkeypatch.setattr(least_squares, "OUTPUTS_TRIED", len(weight))
    exact = fitted(weight, inputs, wanted)
    assert mixed.shape == exact.shape
    assert torch.equal(mixed, again)
    truth = wide_problem(0.0, len(weight))[2]
    errors = [float((inputs[:, KEPT] @ each.T - truth).square().mean()) for each in (mixed, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_layers_with_few_outputs_are_tried_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs, wanted = wide_problem(10.0, outputs=least_squares.OUTPUTS_TRIED)
    found = fitted(weight, inputs, wanted)
    monkeypatch.setattr(least_squares, "_fewer_outputs", lambda weight, parts: (weight, parts))
    assert torch.equal(found, fitted(weight, inputs, wanted))
