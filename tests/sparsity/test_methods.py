from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sparsity import golden
from tests.sparsity.data import inputs_of, statistics_of, weight_of

from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.sparsity.configs import ORDERS, WITHIN, ZEROING_METHODS, Evidence
from loraprune.sparsity.masks import magnitude, wanda
from loraprune.sparsity.methods import sparsify
from loraprune.sparsity.pattern import parse_pattern

ROWS, WIDTH, TOKENS = 6, 16, 50
PATTERNS = pytest.mark.parametrize("pattern", ["0.5", "0.3", "2:4", "1:4", "4:8"])


def options(method, pattern="0.5", **changes):
    kind = ZEROING_METHODS[method]
    own = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in changes.items() if name in own}), parse_pattern(pattern)


def case(*, seed=0, dead=(), rows=ROWS, width=WIDTH):
    """A weight, the rows that enter it, and their statistics."""
    inputs = inputs_of(TOKENS, width, seed=seed, dead=dead)
    return weight_of(rows, width, seed=seed), inputs, statistics_of(inputs)


def tied(rows, width):
    """Weights and inputs of few values, so that most scores have an equal."""
    source = torch.Generator().manual_seed(5)
    weight = torch.randint(-2, 3, (rows, width), generator=source).float()
    return weight, torch.randint(1, 3, (3, width), generator=source).float()


# Scores.


def test_magnitude_is_the_absolute_weight():
    weight = weight_of(ROWS, WIDTH)
    assert np.array_equal(magnitude(weight).numpy(), np.abs(weight.numpy()))


def test_wanda_is_the_absolute_weight_times_the_norm_of_its_input_over_all_tokens():
    weight, inputs, statistics = case(dead=(2,))
    expected = golden.wanda_scores(weight.numpy(), golden.norms_of(inputs.numpy()))
    np.testing.assert_allclose(wanda(weight, statistics.norms).numpy(), expected, rtol=1e-5)


# Masks without updates.


@PATTERNS
def test_magnitude_compares_the_whole_matrix(pattern):
    for weight in (weight_of(ROWS, WIDTH), tied(ROWS, WIDTH)[0]):
        result = sparsify(weight, None, *options("magnitude", pattern))
        expected = golden.magnitude_mask(weight.numpy(), parse_pattern(pattern))
        assert result.removed_OI.tolist() == expected.tolist()
        assert torch.equal(result.weight_OI, weight.masked_fill(result.removed_OI, 0.0))
        assert result.error is None
        assert result.damping is None


@PATTERNS
@pytest.mark.parametrize("ties", [False, True])
def test_wanda_compares_the_weights_of_each_output(pattern, ties):
    weight, inputs, _ = case(dead=(3,))
    if ties:
        weight, inputs = tied(ROWS, WIDTH)
    result = sparsify(weight, statistics_of(inputs, moment=False), *options("wanda", pattern))
    # Ties are such only if both sides round alike.
    norms = np.float32(golden.norms_of(inputs.numpy()))
    expected = golden.wanda_mask(weight.numpy(), norms, parse_pattern(pattern))
    assert result.removed_OI.tolist() == expected.tolist()
    assert torch.equal(result.weight_OI, weight.masked_fill(result.removed_OI, 0.0))


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "magnitude+obs", "wanda+obs"])
def test_the_group_of_comparison_can_be_said(method, within):
    weight, inputs, statistics = case()
    found = options(method, "0.3", within=within)
    norms = golden.norms_of(inputs.numpy()) if method.startswith("wanda") else np.ones(WIDTH)
    mask = {"row": golden.row_mask, "matrix": golden.whole_mask}[within]
    expected = mask(golden.wanda_scores(weight.numpy(), norms), 0.3)
    assert sparsify(weight, statistics, *found).removed_OI.tolist() == expected.tolist()
    assert found[0].compared_weights(ROWS, WIDTH) == (WIDTH if within == "row" else ROWS * WIDTH)


def test_the_variant_of_wanda_takes_different_numbers_from_rows_with_one_share():
    weight, inputs, statistics = case(rows=40, width=50)
    weight *= torch.randn(40, 1).exp()
    result = sparsify(weight, statistics, *options("wanda", "0.4", variant=True))
    counts = result.removed_OI.sum(1)
    assert len(set(counts.tolist())) > 1
    assert abs(float(result.removed_OI.float().mean()) - 0.4) <= 1e-3
    scores = np.sort(golden.wanda_scores(weight.numpy(), golden.norms_of(inputs.numpy())), axis=1)
    shares = np.cumsum(scores, axis=1) / scores.sum(1, keepdims=True)
    taken = [shares[row, count - 1] if count else 0.0 for row, count in enumerate(counts.tolist())]
    following = [shares[row, count] for row, count in enumerate(counts.tolist())]
    assert max(taken) < min(following)
    # A row's scale says nothing: it is a share.
    louder = sparsify(weight * torch.arange(1, 41)[:, None], statistics, *options("wanda", "0.4", variant=True))
    assert torch.equal(louder.removed_OI, result.removed_OI)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_scale_of_an_output_matters_to_magnitude_and_not_to_wanda(method):
    weight, _, statistics = case()
    louder = weight.clone()
    louder[0] *= 1000
    masks = [sparsify(values, statistics, *options(method)).removed_OI for values in (weight, louder)]
    assert torch.equal(*masks) == (method == "wanda")


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_scale_of_an_input_matters_to_wanda_and_not_to_magnitude(method):
    weight, inputs, statistics = case()
    louder = inputs.clone()
    louder[:, 0] *= 1000
    masks = [sparsify(weight, found, *options(method)).removed_OI for found in (statistics, statistics_of(louder))]
    assert torch.equal(*masks) == (method == "magnitude")


# SparseGPT, and the ablations, against optimal brain surgeon column by column.


def check_against_the_equations(weight, inputs, given_options, choose, *, dead=()):
    moment = golden.moment_of(inputs.numpy())
    width = weight.shape[1]
    step = given_options[1].m or min(given_options[0].block_size, width)
    updated, mask = golden.surgeon(weight.numpy(), moment, given_options[0].damping, choose, step)
    expected = golden.with_better_rows(weight.numpy(), updated, mask, moment)
    result = sparsify(weight, statistics_of(inputs), *given_options)
    assert result.removed_OI.tolist() == mask.tolist()
    np.testing.assert_allclose(result.weight_OI.numpy(), expected, rtol=0, atol=1e-5)
    assert (result.weight_OI[result.removed_OI] == 0).all()
    assert not result.weight_OI[:, list(dead)].any()
    change = expected - weight.double().numpy()
    outputs = inputs.double().numpy() @ weight.double().numpy().T
    error = np.square(inputs.double().numpy() @ change.T).sum() / np.square(outputs).sum()
    assert result.error == pytest.approx(error, rel=1e-3)
    assert result.damping == given_options[0].damping
    return result


@PATTERNS
@pytest.mark.parametrize("block_size", [4, 6, 16, 128])
@pytest.mark.parametrize("dead", [(), (0, 9)])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_sparsegpt_is_optimal_brain_surgeon_on_each_block_of_columns(pattern, block_size, dead, damping):
    weight, inputs, _ = case(dead=dead)
    given_options = options("sparsegpt", pattern, block_size=block_size, damping=damping)
    check_against_the_equations(weight, inputs, given_options, golden.sparsegpt(given_options[1]), dead=dead)


@pytest.mark.parametrize("seed", range(4))
def test_sparsegpt_agrees_with_the_equations_on_other_matrices(seed):
    weight, inputs, _ = case(seed=10 + seed, rows=9, width=24)
    given_options = options("sparsegpt", "0.6", block_size=8)
    check_against_the_equations(weight, inputs, given_options, golden.sparsegpt(given_options[1]))


def test_sparsegpt_compares_the_weights_of_a_block_of_columns_and_of_no_other():
    # Independent inputs: the scores are the squares of the weights, and nothing is made up for.
    inputs = torch.eye(8).repeat(2, 1)
    weight = torch.ones(2, 8) + torch.arange(16).view(2, 8) / 100
    weight[0] *= 10
    weight[:, 4:] *= 100
    mask = sparsify(weight, statistics_of(inputs), *options("sparsegpt", block_size=4)).removed_OI
    # In each block the second row: not four of each row, and not the first block altogether.
    assert mask.tolist() == [[False] * 8, [True] * 8]
    whole = sparsify(weight, statistics_of(inputs), *options("sparsegpt", block_size=8)).removed_OI
    assert whole.tolist() == [[True] * 4 + [False] * 4] * 2


def standing(mask):
    return lambda weight, first, diagonals: mask[:, first : first + weight.shape[1]]


@PATTERNS
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("dead", [(), (0, 9)])
def test_in_sequence_the_mask_is_that_of_the_plain_method_and_the_weights_those_of_the_equations(method, pattern, dead):
    weight, inputs, statistics = case(dead=dead)
    plain = sparsify(weight, statistics, *options(method, pattern)).removed_OI
    result = check_against_the_equations(
        weight, inputs, options(f"{method}+obs", pattern, block_size=4), standing(plain.numpy()), dead=dead
    )
    assert torch.equal(result.removed_OI, plain)


@PATTERNS
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("block_size", [4, 8])
def test_iterative_masks_are_chosen_block_by_block_on_the_weights_as_they_are_by_then(method, pattern, block_size):
    weight, inputs, statistics = case(rows=12, width=32)
    parsed, norms = parse_pattern(pattern), golden.norms_of(inputs.numpy())

    def choose(values, first, diagonals):
        part = np.ones(values.shape[1]) if method == "magnitude" else norms[first : first + values.shape[1]]
        scores = golden.wanda_scores(values, part)
        return (
            golden.whole_mask(scores, parsed.ratio)
            if parsed.m is None
            else golden.part_mask(scores, parsed.n, parsed.m)
        )

    given_options = options(f"{method}+obs", pattern, block_size=block_size, order="iterative")
    result = check_against_the_equations(weight, inputs, given_options, choose)
    assert not torch.equal(result.removed_OI, sparsify(weight, statistics, *options(method, pattern)).removed_OI)


@pytest.mark.parametrize(
    ("method", "pattern", "dead"), [("magnitude+obs", "0.25", range(1, WIDTH, 2)), ("sparsegpt", "2:4", range(3))]
)
def test_dead_columns_are_zero_also_in_rows_that_keep_their_old_values(method, pattern, dead):
    # Not all of the dead weights are chosen: they are large, or more than N of M.
    weight, _, statistics = case(rows=30, dead=dead)
    weight[:, list(dead)] *= 10
    result = sparsify(weight, statistics, *options(method, pattern))
    assert not result.removed_OI[:, list(dead)].all()
    stays = ~result.removed_OI
    stays[:, list(dead)] = False
    old = ((result.weight_OI == weight) | ~stays).all(1)
    assert old.any()
    assert not result.weight_OI[:, list(dead)].any()


# How many.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ZEROING_METHODS)
@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 0.77])
def test_exactly_the_share_of_every_group_of_comparison_goes(method, order, ratio):
    weight, _, statistics = case(rows=7, width=43)
    found = options(method, str(ratio), order=order, block_size=16)
    zeros = sparsify(weight, statistics, *found).weight_OI == 0
    if method == "sparsegpt" or (method.endswith("+obs") and order == "iterative"):
        groups = zeros.split(16, dim=1)
    elif method.startswith("wanda"):
        groups = zeros.split(1)
    else:
        groups = [zeros]
    assert [int(group.sum()) for group in groups] == [golden.count_of(group.numel(), ratio) for group in groups]
    assert groups[0].numel() == found[0].compared_weights(7, 43)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ZEROING_METHODS)
@pytest.mark.parametrize(
    ("pattern", "width", "block_size"), [("2:4", 172, 128), ("2:4", 40, 6), ("4:8", 40, 20), ("3:5", 35, 128)]
)
def test_exactly_n_of_every_m_weights_go_whatever_the_blocks(method, order, pattern, width, block_size):
    weight = weight_of(5, width)
    statistics = statistics_of(inputs_of(2 * width, width))
    found = options(method, pattern, order=order, block_size=block_size)
    zeros = sparsify(weight, statistics, *found).weight_OI == 0
    parsed = found[1]
    assert (zeros.unflatten(1, (-1, parsed.m)).sum(-1) == parsed.n).all()


def test_the_last_block_may_be_a_narrow_one():
    weight, inputs, _ = case(rows=3, width=10)
    found = options("sparsegpt", "0.5", block_size=8)
    check_against_the_equations(weight, inputs, found, golden.sparsegpt(found[1]))


# Never worse.


@settings(max_examples=150)
@given(
    method=st.sampled_from(["sparsegpt", "magnitude+obs", "wanda+obs"]),
    order=st.sampled_from(ORDERS),
    pattern=st.sampled_from(["0.5", "0.3", "0.8", "2:4", "1:2", "7:8"]),
    block_size=st.sampled_from([4, 8, 128]),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 4).map(lambda parts: 8 * parts)),
    tokens=st.integers(1, 80),
    correlation=st.sampled_from([0.0, 1.0, 30.0, 3000.0]),
    damping=st.sampled_from([0.0, 1e-6, 0.01, 0.1]),
    seed=st.integers(0, 1000),
)
def test_the_error_is_never_above_that_of_the_same_mask_without_updates(
    method, order, pattern, block_size, shape, tokens, correlation, damping, seed
):
    weight = weight_of(*shape, seed=seed)
    inputs = inputs_of(tokens, shape[1], seed=seed, correlation=correlation)
    inputs /= inputs.square().mean().sqrt()
    found = options(method, pattern, order=order, block_size=block_size, damping=damping)
    result = sparsify(weight, statistics_of(inputs), *found)
    moment = golden.moment_of(inputs.numpy())
    plain = weight.masked_fill(result.removed_OI, 0.0)
    # What float32 can tell apart: outputs of a size that all of a row's weights could make.
    scale = np.square(weight.double().numpy()).sum(1) * np.trace(moment)
    for row in range(shape[0]):
        costs = [
            golden.cost((values[row] - weight[row]).double().numpy(), moment) for values in (result.weight_OI, plain)
        ]
        assert costs[0] <= costs[1] + 1e-5 * scale[row]


def test_updates_take_away_much_of_the_error_where_inputs_are_correlated():
    weight, inputs, statistics = case(rows=20, width=32)
    moment = golden.moment_of(inputs.numpy())
    result = sparsify(weight, statistics, *options("sparsegpt"))
    plain = weight.masked_fill(result.removed_OI, 0.0)
    costs = [
        sum(golden.cost(row.double().numpy(), moment) for row in values - weight)
        for values in (result.weight_OI, plain)
    ]
    assert costs[0] < 0.5 * costs[1]


# What is not touched, and what cannot be done.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ZEROING_METHODS)
def test_the_weight_and_the_statistics_are_left_as_they_are_and_the_result_is_the_same_again(method, order):
    weight, _, statistics = case(dead=(4,))
    before, moment, norms = weight.clone(), statistics.moment.clone(), statistics.norms.clone()
    first, second = (sparsify(weight, statistics, *options(method, order=order)) for _ in range(2))
    assert torch.equal(weight, before)
    assert torch.equal(statistics.moment, moment)
    assert torch.equal(statistics.norms, norms)
    assert torch.equal(first.weight_OI, second.weight_OI)
    assert torch.equal(first.removed_OI, second.removed_OI)
    assert first.weight_OI.dtype == torch.float32


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("method", ZEROING_METHODS)
def test_the_order_of_the_outputs_does_not_matter(method, pattern):
    weight, _, statistics = case()
    order = torch.randperm(ROWS)
    results = [sparsify(values, statistics, *options(method, pattern)) for values in (weight, weight[order])]
    assert torch.equal(results[0].removed_OI[order], results[1].removed_OI)
    torch.testing.assert_close(results[0].weight_OI[order], results[1].weight_OI)


@pytest.mark.parametrize("method", ZEROING_METHODS)
def test_a_method_looks_at_no_more_than_it_says(method):
    _, _, statistics = case()
    known = {
        Evidence.NOTHING: None,
        Evidence.NORMS: SimpleNamespace(norms=statistics.norms),
        Evidence.MOMENT: SimpleNamespace(norms=statistics.norms, moment=statistics.moment),
    }[ZEROING_METHODS[method].evidence]
    sparsify(weight_of(ROWS, WIDTH), known, *options(method))


def test_damping_that_was_raised_is_told():
    moment = torch.eye(WIDTH)
    moment[0, 1] = moment[1, 0] = 1.05
    inputs = SimpleNamespace(norms=torch.ones(WIDTH), moment=moment)
    assert sparsify(weight_of(ROWS, WIDTH), inputs, *options("sparsegpt")).damping == pytest.approx(0.1)


def test_a_second_moment_that_cannot_be_inverted_is_an_error():
    inputs = SimpleNamespace(norms=torch.ones(WIDTH), moment=torch.full((WIDTH, WIDTH), float("nan")))
    with pytest.raises(NotPositiveDefiniteError):
        sparsify(weight_of(ROWS, WIDTH), inputs, *options("sparsegpt"))
