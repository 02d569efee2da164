from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tests.models import PROJECTIONS, tiny_model, token_ids
from torch import nn

from loraprune.calibration.features import FeatureStatistics, gram, watched_features

WIDTH = 5


def batches(*, dtype=torch.float32, shift=0.5):
    """Of different shapes: the last dimension holds the features."""
    return [(torch.randn(*shape, WIDTH) + shift).to(dtype) for shape in ((2, 7), (3,), (1, 4, 2), (1, 1))]


def statistics_of(parts, *, moment=True):
    statistics = FeatureStatistics(moment=moment)
    for part in parts:
        statistics.add(part)
    return statistics


def rows_of(parts):
    return np.concatenate([part.double().reshape(-1, part.shape[-1]).numpy() for part in parts])


# The sums.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_statistics_of_batches_are_those_of_all_rows(dtype):
    parts = batches(dtype=dtype)
    statistics, rows = statistics_of(parts), rows_of(parts)
    assert statistics.rows == len(rows)
    for actual, expected in (
        (statistics.norms, np.linalg.norm(rows, axis=0)),
        (statistics.mean, rows.mean(0)),
        (statistics.mean_square, np.square(rows).mean(0)),
        (statistics.variance, rows.var(0)),
        (statistics.moment, sum(np.outer(row, row) for row in rows) / len(rows)),
    ):
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert statistics.is_finite


def test_the_variance_is_felt_beside_a_mean_a_thousand_times_as_large():
    parts = [torch.randn(200, WIDTH) + 1000 for _ in range(5)]
    np.testing.assert_allclose(statistics_of(parts).variance.numpy(), rows_of(parts).var(0), rtol=1e-2)


def test_the_variance_of_a_constant_is_zero_to_rounding_and_not_below():
    parts = [torch.full((7, WIDTH), 0.1), torch.full((3, WIDTH), 0.1)]
    variance = statistics_of(parts).variance
    assert (variance >= 0).all()
    assert (variance <= 1e-7 * 0.1**2).all()


def test_the_inputs_are_left_as_they_are_and_nothing_of_them_is_kept():
    part = torch.randn(4, WIDTH, requires_grad=True)
    before = part.detach().clone()
    statistics = statistics_of([part])
    norms = statistics.norms.clone()
    assert torch.equal(part.detach(), before)
    assert not statistics.moment.requires_grad
    part.detach().zero_()
    assert torch.equal(statistics.norms, norms)


def test_statistics_that_were_read_stay_as_they_are_when_more_comes_in():
    first, second = batches()[:2]
    statistics = statistics_of([first])
    moment, norms = statistics.moment, statistics.norms
    copies = moment.clone(), norms.clone()
    statistics.add(second)
    assert torch.equal(moment, copies[0])
    assert torch.equal(norms, copies[1])


@pytest.mark.parametrize("read", [False, True], ids=["as sums", "once the moment was read"])
def test_the_statistics_of_two_are_those_of_all_rows(read):
    parts = batches()
    one, other, both = statistics_of(parts[:2]), statistics_of(parts[2:]), statistics_of(parts)
    if read:
        moments = one.moment.clone(), other.moment.clone()
    found = one.plus(other)
    assert found.rows == both.rows
    for name in ("norms", "mean", "mean_square", "variance", "moment"):
        torch.testing.assert_close(getattr(found, name), getattr(both, name), rtol=1e-5, atol=1e-6)
    if read:
        assert torch.equal(one.moment, moments[0])
        assert torch.equal(other.moment, moments[1])
    assert one.plus(statistics_of(parts[2:], moment=False)).with_moment is False
    alone = one.plus(FeatureStatistics(moment=True))
    assert torch.equal(alone.moment, one.moment)
    assert alone.moment is not one.moment


def test_a_second_moment_takes_no_more_memory_when_it_is_read():
    statistics = statistics_of(batches())
    assert statistics.moment is statistics.moment


@pytest.mark.parametrize("width", [1, 95, 96, 97, 193, 1000])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_one_triangle_makes_the_whole_product(width, rows):
    x = torch.randn(rows, width + 3)[:, 3:]
    found = gram(x)
    torch.testing.assert_close(found, x.T @ x, rtol=1e-5, atol=1e-4)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_noticed(spoil):
    first, second = batches()[:2]
    second[1, 2] = spoil
    assert statistics_of([first]).is_finite
    assert not statistics_of([first, second]).is_finite
    assert not statistics_of([second, first]).is_finite


def test_before_any_data_there_is_nothing_to_tell():
    statistics = FeatureStatistics(moment=True)
    for name in ("norms", "mean", "mean_square", "variance", "moment"):
        with pytest.raises(RuntimeError, match="No calibration data has entered"):
            getattr(statistics, name)


def test_a_second_moment_that_was_not_asked_for_is_not_there():
    statistics = statistics_of(batches(), moment=False)
    assert statistics.norms.shape == (WIDTH,)
    with pytest.raises(RuntimeError, match="second moment was not requested"):
        _ = statistics.moment


# Layers that are watched.


class Layers(nn.Module):
    """Three layers, each called with what a run says."""

    def __init__(self):
        super().__init__()
        for name in "abc":
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def run(self, **inputs):
        for name, values in inputs.items():
            for value in values if isinstance(values, list) else [values]:
                getattr(self, name)(value)


def watch(*runs, names="abc", moment=True):
    layers = Layers()
    found = watched_features(layers, list(names), [partial(layers.run, **inputs) for inputs in runs], moment=moment)
    assert not any(layer._forward_pre_hooks for layer in layers.children())
    return found


def check(statistics, parts):
    rows = rows_of(parts)
    assert statistics.rows == len(rows)
    np.testing.assert_allclose(statistics.moment.numpy(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.mean.numpy(), rows.mean(0), rtol=1e-4, atol=1e-5)


def test_layers_that_read_one_tensor_share_an_object_and_it_counts_every_row_once():
    x, y, z = batches()[:3]
    found = watch({"a": x, "b": x, "c": y}, {"a": z, "b": z, "c": x})
    assert found["a"] is found["b"]
    assert found["a"] is not found["c"]
    check(found["a"], [x, z])
    check(found["c"], [y, x])


def test_equal_values_in_two_tensors_are_not_one_tensor():
    x = batches()[0]
    found = watch({"a": x, "b": x.clone()})
    assert found["a"] is not found["b"]
    check(found["b"], [x])


def test_a_tensor_that_was_changed_in_place_is_another_one():
    x = batches()[0]
    layers = Layers()

    def run():
        layers.a(x)
        x.mul_(2)
        layers.b(x)

    before = x.clone()
    found = watched_features(layers, ["a", "b"], [run], moment=True)
    check(found["a"], [before])
    check(found["b"], [2 * before])


def test_another_view_of_the_same_memory_is_another_tensor():
    x = torch.randn(WIDTH, WIDTH)
    found = watch({"a": x, "b": x.T})
    check(found["a"], [x])
    check(found["b"], [x.T])


def test_memory_that_is_used_again_within_a_run_is_not_taken_for_the_same_tensor():
    layers = Layers()
    parts = []

    def run():
        for layer in (layers.a, layers.b, layers.c):
            x = torch.randn(300, WIDTH)
            parts.append(x.clone())
            layer(x)
            del x

    found = watched_features(layers, list("abc"), [run], moment=True)
    for name, part in zip("abc", parts, strict=True):
        check(found[name], [part])


@pytest.mark.parametrize(
    "second",
    [
        {"a": 2, "b": 3},  # two tensors
        {"a": 2},  # the first one alone
        {"b": 2},  # the second one alone
        {"a": [2, 3], "b": 2},  # the first one twice
        {"a": [2, 2], "b": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("swapped", [False, True])
def test_layers_that_share_a_tensor_in_one_run_only_have_statistics_of_their_own(second, swapped):
    parts = batches()
    shared = {"a": parts[0], "b": parts[0]}
    other = {
        name: [parts[at] for at in places] if isinstance(places, list) else parts[places]
        for name, places in second.items()
    }
    runs = [other, shared] if swapped else [shared, other]
    found = watch(*runs, names="ab")
    assert found["a"] is not found["b"]
    for name in "ab":
        entered = []
        for inputs in runs:
            values = inputs.get(name, [])
            entered += values if isinstance(values, list) else [values]
        check(found[name], entered)


def test_a_layer_that_is_called_more_than_once_in_a_run_counts_all_of_it():
    x, y = batches()[:2]
    found = watch({"a": [x, y, x]}, names="a")
    check(found["a"], [x, y, x])


def test_a_layer_that_no_data_reaches_has_no_entry():
    x = batches()[0]
    assert watch({"a": x}).keys() == {"a"}
    assert watch({"a": x, "b": x[:0], "c": x[:0]}).keys() == {"a"}
    assert watch().keys() == set()


def test_only_layers_that_are_named_are_watched():
    x = batches()[0]
    assert watch({"a": x, "b": x, "c": x}, names="b").keys() == {"b"}


def test_no_hook_stays_when_a_run_fails():
    layers = Layers()
    with pytest.raises(RuntimeError):
        watched_features(layers, ["a"], [partial(layers.run, a=torch.randn(2, WIDTH + 1))], moment=False)
    assert not any(layer._forward_pre_hooks for layer in layers.children())


def test_what_a_layer_is_called_with_is_seen_before_any_other_hook_changes_it():
    layers, x = Layers(), batches()[0]
    layers.a.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    check(watched_features(layers, ["a"], [partial(layers.a, x)], moment=True)["a"], [x])


def test_query_key_and_value_share_and_so_do_gate_and_up_and_no_others():
    model = tiny_model("llama", num_hidden_layers=1)
    names = {name: f"model.layers.0.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}" for name in PROJECTIONS}
    runs = [partial(model, input_ids=token_ids(2, tokens, seed=tokens)) for tokens in (5, 9, 9)]
    with torch.no_grad():
        found = watched_features(model, list(names.values()), runs, moment=True)
    groups = {}
    for name in PROJECTIONS:
        groups.setdefault(id(found[names[name]]), []).append(name)
    assert list(groups.values()) == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert {statistics.rows for statistics in found.values()} == {2 * (5 + 9 + 9)}
