from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.sparsity import golden
from tests.sparsity.data import inputs_of, weight_of

from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.sparsity.masks import lowest_of_matrix, lowest_of_parts
from loraprune.sparsity.obs import better_rows, inverse, mask_error, prune_columns
from loraprune.sparsity.pattern import parse_pattern

ROWS, WIDTH = 5, 12


def moment_of(rows):
    return (rows.T @ rows) / len(rows)


def mask_of(*, seed=0, share=0.5):
    return torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)) < share


def given_mask(mask):
    """A chooser of columns of a mask that stands, for our code and for the equations."""
    return (
        lambda weight, roots, columns: mask[:, columns],
        lambda weight, first, diagonals: mask.numpy()[:, first : first + weight.shape[1]],
    )


@pytest.mark.parametrize("dead", [(), (0,), (3, 11)])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_the_factor_is_upper_triangular_and_its_square_is_the_damped_inverse(dead, damping):
    moment = moment_of(inputs_of(40, WIDTH, dead=dead))
    found = inverse(moment, damping)
    factor = found.factor_II.double().numpy()
    expected = np.linalg.inv(golden.damped(moment.numpy(), damping))
    np.testing.assert_allclose(factor.T @ factor, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert (np.tril(factor, -1) == 0).all()
    assert found.dead_I.nonzero().flatten().tolist() == list(dead)
    assert found.damping == damping
    assert found.factor_II.dtype == torch.float32


def test_its_diagonal_is_that_of_the_inverses_of_what_is_left_from_each_column_on():
    moment = moment_of(inputs_of(40, WIDTH))
    full = golden.damped(moment.numpy(), 0.01)
    expected = [np.linalg.inv(full[column:, column:])[0, 0] for column in range(WIDTH)]
    np.testing.assert_allclose(inverse(moment, 0.01).factor_II.diagonal().square(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_moment_is_left_as_it_is(dtype):
    moment = moment_of(inputs_of(40, WIDTH, dead=(2,))).to(dtype)
    before = moment.clone()
    inverse(moment, 0.01)
    assert torch.equal(moment, before)


def test_without_any_damping_a_singular_moment_is_inverted_with_some_or_as_rounding_leaves_it():
    # Some of these can be factored because of rounding, and their inverses cannot be.
    source = torch.Generator().manual_seed(0)
    dampings = set()
    for _ in range(600):
        tokens, width = (int(torch.randint(low, 12, (), generator=source)) for low in (1, 2))
        scale = torch.rand((), generator=source)
        moment = moment_of(torch.randint(-9, 9, (tokens, width), generator=source).float() * scale)
        found = inverse(moment, 0.0)
        assert torch.isfinite(found.factor_II).all()
        dampings.add(found.damping)
    assert dampings == {0.0, 1e-3}


@pytest.mark.parametrize(("most_negative", "used"), [(-0.05, 0.1), (-0.5, 1.0), (-5.0, 10.0)])
def test_the_damping_is_raised_tenfold_until_the_moment_can_be_inverted(most_negative, used):
    moment = torch.diag(torch.ones(200))
    moment[0, 1] = moment[1, 0] = 1 - most_negative
    assert inverse(moment, 0.01).damping == pytest.approx(used)


@pytest.mark.parametrize("spoil", [-1e3, float("nan"), float("inf")])
def test_a_moment_that_no_damping_makes_positive_definite_is_an_error(spoil):
    moment = torch.eye(4)
    moment[0, 1] = moment[1, 0] = spoil
    with pytest.raises(NotPositiveDefiniteError):
        inverse(moment, 0.01)


def test_inputs_that_are_all_dead_can_be_inverted():
    found = inverse(torch.zeros(3, 3), 0.01)
    assert found.dead_I.all()
    weight, _ = prune_columns(weight_of(2, 3), found, lambda *_: torch.zeros(2, 3, dtype=torch.bool), step=3)
    assert not weight.any()


@pytest.mark.parametrize("block_size", [1, 4, 5, 12, 128])
@pytest.mark.parametrize("dead", [(), (0, 7)])
def test_with_a_mask_that_stands_the_weights_are_those_of_the_equations_whatever_the_blocks(block_size, dead):
    weight, moment, mask = weight_of(ROWS, WIDTH), moment_of(inputs_of(40, WIDTH, dead=dead)), mask_of()
    ours, theirs = given_mask(mask)
    expected, _ = golden.surgeon(weight.numpy(), moment.numpy(), 0.01, theirs, WIDTH)
    updated, removed = prune_columns(weight, inverse(moment, 0.01), ours, step=block_size, block_size=block_size)
    assert torch.equal(removed, mask)
    np.testing.assert_allclose(updated.numpy(), expected, rtol=0, atol=1e-5)
    assert (updated[mask] == 0).all()
    assert (updated[:, list(dead)] == 0).all()


@pytest.mark.parametrize("step", [4, 5, 12])
def test_a_block_is_chosen_from_on_the_values_that_the_blocks_before_it_leave(step):
    weight, moment, pattern = weight_of(ROWS, WIDTH), moment_of(inputs_of(40, WIDTH)), parse_pattern(0.5)
    expected, expected_mask = golden.surgeon(weight.numpy(), moment.numpy(), 0.01, golden.sparsegpt(pattern), step)
    updated, removed = prune_columns(
        weight,
        inverse(moment, 0.01),
        lambda values, roots, columns: lowest_of_matrix((values / roots).square(), pattern),
        step=step,
        block_size=step,
    )
    assert removed.tolist() == expected_mask.tolist()
    np.testing.assert_allclose(updated.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_size", [4, 8, 12])
def test_parts_within_a_block_are_chosen_from_on_the_values_that_the_columns_before_them_leave(block_size):
    weight, moment, pattern = weight_of(ROWS, WIDTH), moment_of(inputs_of(40, WIDTH)), parse_pattern("2:4")
    expected, expected_mask = golden.surgeon(weight.numpy(), moment.numpy(), 0.01, golden.sparsegpt(pattern), 4)
    updated, removed = prune_columns(
        weight,
        inverse(moment, 0.01),
        lambda values, roots, columns: lowest_of_parts((values / roots).square(), pattern),
        step=4,
        block_size=block_size,
    )
    assert removed.tolist() == expected_mask.tolist()
    np.testing.assert_allclose(updated.numpy(), expected, rtol=0, atol=1e-5)


def test_a_chooser_is_told_which_columns_it_sees():
    seen = []

    def choose(weight, roots, columns):
        assert weight.shape == (ROWS, len(roots))
        seen.append((columns.start, columns.stop))
        return torch.zeros_like(weight, dtype=torch.bool)

    found = inverse(torch.eye(WIDTH), 0.01)
    prune_columns(weight_of(ROWS, WIDTH), found, choose, step=5, block_size=5)
    assert seen == [(0, 5), (5, 10), (10, 12)]
    seen.clear()
    prune_columns(weight_of(ROWS, WIDTH), found, choose, step=2, block_size=8)
    assert seen == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12)]


def test_what_stays_does_not_change_where_the_inputs_are_independent():
    weight, mask = weight_of(ROWS, WIDTH), mask_of()
    updated, _ = prune_columns(weight, inverse(torch.eye(WIDTH), 0.01), given_mask(mask)[0], step=WIDTH)
    assert torch.equal(updated, weight.masked_fill(mask, 0.0))


def test_the_weight_and_the_mask_of_the_chooser_are_left_as_they_are():
    weight, mask = weight_of(ROWS, WIDTH), mask_of()
    before, mask_before = weight.clone(), mask.clone()
    moment = moment_of(inputs_of(40, WIDTH, dead=(1,)))
    prune_columns(weight, inverse(moment, 0.01), given_mask(mask)[0], step=WIDTH)
    assert torch.equal(weight, before)
    assert torch.equal(mask, mask_before)


def test_the_error_is_the_mean_squared_change_of_each_output():
    rows, change = inputs_of(40, WIDTH), weight_of(ROWS, WIDTH)
    expected = (rows @ change.T).square().mean(0)
    torch.testing.assert_close(mask_error(change, moment_of(rows)), expected, rtol=1e-4, atol=1e-4)


def test_an_update_can_be_worse_than_none_and_then_the_row_keeps_its_old_values():
    # The last input is the second one and a tenth of the first one. When the first column goes, ten times its weight
    # moves to the last one and from the second one, which cancel out until the last one goes as well.
    sources = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    moment = sources @ sources.T
    weight = torch.tensor([[1.0, 3.0, 0.5], [0.5, 3.0, 2.0]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    updated, _ = prune_columns(weight, inverse(moment, 1e-4), lambda values, roots, columns: mask, step=3)
    plain = weight.masked_fill(mask, 0.0)
    costs = [mask_error(values - weight, moment).tolist() for values in (updated, plain)]
    assert costs[0][0] > 10 * costs[1][0]
    assert better_rows(weight, updated, mask, moment)[0].tolist() == [0.0, 3.0, 0.0]
    # Nothing is to the right of what goes from the other row.
    assert torch.equal(better_rows(weight, updated, mask, moment)[1], plain[1])


def test_of_each_row_the_better_one_is_taken():
    moment = moment_of(inputs_of(40, WIDTH))
    weight, mask = weight_of(ROWS, WIDTH), mask_of()
    updated, _ = prune_columns(weight, inverse(moment, 0.01), given_mask(mask)[0], step=WIDTH)
    expected = golden.with_better_rows(weight.numpy(), updated.numpy(), mask.numpy(), moment.numpy())
    kept = {bool((expected[row] == updated[row].numpy()).all()) for row in range(ROWS)}
    assert kept == {True, False}
    np.testing.assert_array_equal(better_rows(weight, updated, mask, moment).numpy(), np.float32(expected))
