from __future__ import annotations

import copy
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import FAMILIES, factors, features, logits_of, projections, tiny_model, token_ids, with_lora
from tests.pruning.criteria import criterion_of

import loraprune.surgery.refit as refit
from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.least_squares import NotPositiveDefiniteError, refit_columns
from loraprune.layers.lora import effective_weight
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import CutHooks, cut_and_repair_
from loraprune.surgery.repairs import NoRepair, Refit, repair_of
from loraprune.surgery.slicing import slice_

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (64, 64, 33, 50)]

A_PLAN = {
    "layers.0.heads": [1, 3],
    "layers.1.heads": [0, 2, 3],
    "layers.0.channels": [0, 3, 5, 7, 11, 20],
    "layers.1.channels": [1, 2, 13, 21, 22, 23],
}


def activations(tokens=200, width=10, seed=0):
    """Correlated inputs of different sizes, in 64 bits."""
    random = np.random.default_rng(seed)
    return random.normal(size=(tokens, width)) @ random.normal(size=(width, width)) * random.uniform(0.5, 2, width)


def refitted(inputs, weight, kept, damping):
    moment = torch.as_tensor(inputs.T @ inputs / len(inputs))
    return refit_columns(torch.as_tensor(weight), moment, torch.tensor(kept), damping).numpy()


def test_without_damping_the_columns_are_the_least_squares_solution_on_the_activations():
    inputs, kept = activations(), [0, 2, 3, 7, 9]
    weight = np.random.default_rng(1).normal(size=(4, 10))
    expected = np.linalg.lstsq(inputs[:, kept], inputs @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(refitted(inputs, weight, kept, 0.0), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [0.01, 0.5, 20.0])
def test_with_damping_they_are_the_least_squares_solution_with_a_pull_towards_the_old_columns(damping):
    inputs, kept = activations(), [1, 4, 5, 6]
    weight = np.random.default_rng(1).normal(size=(4, 10))
    strength = damping * (inputs[:, kept] ** 2).mean()  # the mean diagonal of the second moment
    pull = np.sqrt(len(inputs) * strength) * np.eye(len(kept))
    rows = np.concatenate([inputs[:, kept], pull])
    targets = np.concatenate([inputs @ weight.T, pull @ weight[:, kept].T])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    np.testing.assert_allclose(refitted(inputs, weight, kept, damping), expected, rtol=1e-8, atol=1e-10)


def test_strong_damping_ends_in_the_plain_cut():
    inputs, kept = activations(), [0, 1, 2]
    weight = np.random.default_rng(1).normal(size=(4, 10))
    np.testing.assert_allclose(refitted(inputs, weight, kept, 1e9), weight[:, kept], atol=1e-6)


@given(
    seed=st.integers(0, 1000),
    kept=st.sets(st.integers(0, 9), min_size=1).map(sorted),
    damping=st.floats(1e-6, 100),
    tokens=st.integers(2, 60),
)
def test_a_refit_is_never_worse_than_the_plain_cut_on_its_own_data(seed, kept, damping, tokens):
    inputs = activations(tokens, seed=seed)  # with few tokens the moment is singular
    weight = np.random.default_rng(seed).normal(size=(3, 10))
    wanted = inputs @ weight.T
    plain = np.square(wanted - inputs[:, kept] @ weight[:, kept].T).sum()
    after = np.square(wanted - inputs[:, kept] @ refitted(inputs, weight, kept, damping).T).sum()
    assert after <= plain * (1 + 1e-6) + 1e-12


def test_damping_is_raised_until_a_singular_moment_can_be_factored():
    # Slightly indefinite, as rounding leaves it: a thousandth of the mean diagonal is not enough, a hundredth is.
    moment = torch.diag(torch.tensor([1.0, 1.0, -5e-3, 1.0]))
    after = refit_columns(torch.ones(2, 4), moment, torch.tensor([0, 1, 2]), 1e-3)
    assert torch.isfinite(after).all()


@pytest.mark.parametrize(
    "moment",
    [torch.zeros(4, 4), torch.full((4, 4), torch.nan), -torch.eye(4), torch.diag(torch.tensor([1.0, -9.0, 9.0, 1.0]))],
    ids=["zero", "nan", "negative", "indefinite"],
)
def test_a_moment_that_is_not_positive_definite_is_refused(moment):
    with pytest.raises(NotPositiveDefiniteError):
        refit_columns(torch.ones(2, 4), moment, torch.tensor([0, 1]), 0.01)


def test_inputs_that_are_not_finite_beside_the_kept_columns_are_refused():
    moment = torch.eye(4)
    moment[0, 3] = moment[3, 0] = torch.inf
    with pytest.raises(NotPositiveDefiniteError):
        refit_columns(torch.ones(2, 4), moment, torch.tensor([0, 1]), 0.01)


def plans_of(model, positions=A_PLAN):
    structure = describe(model)
    full = Plan.full(structure)
    return structure, full, full.keep(positions)


def refit_by_hand(model, damping):
    """The cut and refit of every dimension in turn, each on activations of the whole model as it is by then."""
    structure, plan, after = plans_of(model)
    for dimension in structure:
        name = dimension.name
        consumer = projections(model, dimension.layer)["o_proj" if dimension.kind == "heads" else "down_proj"]
        inputs = []
        handle = consumer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].detach()))
        for sequence in CALIBRATION:
            logits_of(model, sequence[None])
        handle.remove()
        rows = torch.cat([states.flatten(0, 1) for states in inputs]).double().numpy()
        kept = features(after.kept[name], rows.shape[1] // dimension.num_groups)
        a, b = (factor.detach().double().numpy() for factor in factors(consumer))
        weight = consumer.base_layer.weight.detach().double().numpy() + 4 / 3 * b @ a
        pull = np.sqrt(len(rows) * damping * (rows[:, kept] ** 2).mean()) * np.eye(len(kept))
        solution = np.linalg.lstsq(
            np.concatenate([rows[:, kept], pull]),
            np.concatenate([rows @ weight.T, pull @ weight[:, kept].T]),
            rcond=None,
        )[0].T
        smaller = plan.keep({name: after.positions_in(plan)[name]})
        slice_(model, structure, plan, smaller)
        plan = smaller
        a, b = (factor.detach().double().numpy() for factor in factors(consumer))
        with torch.no_grad():
            consumer.base_layer.weight.copy_(torch.as_tensor(solution - 4 / 3 * b @ a))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_consumer_is_refitted_on_the_outputs_of_the_model_as_it_was_cut_so_far(family):
    model = with_lora(tiny_model(family))
    by_hand = copy.deepcopy(model)
    refit_by_hand(by_hand, damping=0.05)
    structure, full, after = plans_of(model)
    cut_and_repair_(model, structure, full, after, calibration=CALIBRATION, repair=Refit(0.05))
    for (name, one), (_, other) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)


def test_a_refit_leaves_the_adapter_as_a_plain_cut_leaves_it(model):
    adapted = with_lora(model)
    plain = copy.deepcopy(adapted)
    structure, full, after = plans_of(adapted)
    cut_and_repair_(adapted, structure, full, after, calibration=CALIBRATION)
    slice_(plain, structure, full, after)
    for (name, one), (_, other) in zip(adapted.named_parameters(), plain.named_parameters(), strict=True):
        refitted_here = name.endswith(("o_proj.base_layer.weight", "down_proj.base_layer.weight"))
        assert torch.equal(one, other) != refitted_here, name


@torch.no_grad()
def duplicate_groups_(model):
    """Make KV head 1 of every layer compute a multiple of what head 0 does, and odd channels of the even ones."""
    queries, width = features([0], 8), features([0], 4)
    for layer in range(2):
        linears = projections(model, layer)
        for name, first in (("q_proj", queries), ("k_proj", width), ("v_proj", width)):
            second = [position + len(first) for position in first]
            factor = 1.7 if name == "v_proj" else 1.0
            linears[name].weight[second] = factor * linears[name].weight[first]
            if linears[name].bias is not None:
                linears[name].bias[second] = factor * linears[name].bias[first]
        linears["gate_proj"].weight[1::2] = linears["gate_proj"].weight[0::2]
        linears["up_proj"].weight[1::2] = -0.6 * linears["up_proj"].weight[0::2]


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_groups_that_others_can_stand_in_for_loses_nothing_with_refit(family, cuts):
    model = tiny_model(family)
    duplicate_groups_(model)
    structure = describe(model)
    full = Plan.full(structure)
    halfway = full.keep({d.name: [0, 1, 2, 3, *range(4, 24, 2)] for d in structure.of_kind("channels")})
    smallest = {"heads": [0, 2, 3], "channels": [0, 2, *range(4, 14)]}
    after = halfway.keep({d.name: smallest[d.kind] for d in structure})
    ids = token_ids(seed=99)
    dense, plain = logits_of(model, ids), copy.deepcopy(model)
    for before, smaller in [(full, after)] if cuts == 1 else [(full, halfway), (halfway, after)]:
        cut_and_repair_(model, structure, before, smaller, calibration=CALIBRATION, repair=Refit(1e-6))
    cut_and_repair_(plain, structure, full, after)
    assert (logits_of(model, ids) - dense).abs().max() < 5e-3
    assert (logits_of(plain, ids) - dense).abs().max() > 0.5


def correlated_model():
    """A model whose weights have a low rank, so that its features can be told from one another."""
    model = tiny_model()
    with torch.no_grad():
        for layer in range(2):
            for name, module in projections(model, layer).items():
                if name not in ("o_proj", "down_proj"):
                    left, values, right = torch.linalg.svd(module.weight, full_matrices=False)
                    values = values * 0.5 ** torch.arange(len(values))
                    module.weight.copy_(left @ torch.diag(values) @ right)
    return model


def output_error(model, dense):
    return sum((logits_of(model, s[None]) - d).square().sum() for s, d in zip(CALIBRATION, dense, strict=True))


def test_a_cut_with_refit_is_nearer_to_the_dense_model_than_a_plain_cut():
    model = correlated_model()
    structure, full, after = plans_of(model)
    dense = [logits_of(model, sequence[None]) for sequence in CALIBRATION]
    plain = copy.deepcopy(model)
    cut_and_repair_(model, structure, full, after, calibration=CALIBRATION)
    cut_and_repair_(plain, structure, full, after)
    assert output_error(model, dense) < 0.5 * output_error(plain, dense)


def test_without_calibration_the_cut_is_the_plain_one(model):
    plain = copy.deepcopy(model)
    structure, full, after = plans_of(model)
    cut_and_repair_(model, structure, full, after, calibration=None)
    slice_(plain, structure, full, after)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dimensions_that_are_not_cut_are_not_refitted(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    structure, full, after = plans_of(model, {"layers.1.heads": [0, 1]})
    cut_and_repair_(model, structure, full, after, calibration=CALIBRATION)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"}


@pytest.mark.parametrize("value", [torch.nan, 0.0, -1.0])
def test_where_no_refit_is_possible_the_plain_cut_is_made_with_a_warning(monkeypatch, model, value):
    plain = copy.deepcopy(model)
    structure, full, after = plans_of(model)
    measure = LayerwisePass.features

    def broken(self, name, **options):
        statistics = measure(self, name, **options)
        if name != "model.layers.0.mlp.down_proj":
            return statistics
        return SimpleNamespace(moment=value * torch.eye(len(statistics.mean)), rows=statistics.rows)

    monkeypatch.setattr(refit.LayerwisePass, "features", broken)
    with pytest.warns(UserWarning, match=r"layers\.0\.channels: cut without a refit, .* not positive.*more damping"):
        cut_and_repair_(model, structure, full, after, calibration=CALIBRATION)
    slice_(plain, structure, full, after)
    one, other = projections(model, 0)["down_proj"].weight, projections(plain, 0)["down_proj"].weight
    assert torch.equal(one, other)
    one, other = projections(model, 1)["down_proj"].weight, projections(plain, 1)["down_proj"].weight
    assert one.shape == other.shape
    assert not torch.equal(one, other)  # the others are refitted all the same


def test_an_ordinary_refit_does_not_warn(model):
    structure, full, after = plans_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut_and_repair_(model, structure, full, after, calibration=CALIBRATION)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_base_and_adapter_together_make_the_refitted_weight_in_the_dtype_of_the_base(dtype):
    model = with_lora(tiny_model(dtype=dtype))
    structure, full, after = plans_of(model)
    layerwise = LayerwisePass(model, structure, CALIBRATION)
    consumer = projections(model, 0)["o_proj"]
    kept = torch.tensor(features([1, 3], 8))
    expected = refit_columns(
        effective_weight(consumer),
        layerwise.features("model.layers.0.self_attn.o_proj", moment=True).moment,
        kept,
        0.01,
    )
    cut_and_repair_(model, structure, full, after, calibration=CALIBRATION)
    assert consumer.base_layer.weight.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(effective_weight(consumer), expected, rtol=tolerance, atol=tolerance)


def test_calibration_runs_without_dropout_and_every_module_gets_its_mode_back(model):
    adapted = with_lora(model, lora_dropout=0.5).train()
    quiet = copy.deepcopy(adapted).eval()
    adapted.get_base_model().model.layers[0].eval()
    modes = [module.training for module in adapted.modules()]
    structure, full, after = plans_of(adapted)
    for each in (adapted, quiet):
        cut_and_repair_(each, structure, full, after, calibration=CALIBRATION)
    assert [module.training for module in adapted.modules()] == modes
    for one, other in zip(adapted.parameters(), quiet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_cut_with_refit_cuts_the_state_of_the_optimizer(model):
    adapted = with_lora(model)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    adapted(input_ids=token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()
    structure, full, after = plans_of(adapted)
    cut_and_repair_(adapted, structure, full, after, calibration=CALIBRATION, optimizer=optimizer)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
    assert factors(projections(adapted, 0)["down_proj"])[0].shape == (3, 6)


def test_a_cut_that_regrows_is_refused_before_anything_is_changed(model):
    structure, full, after = plans_of(model)
    slice_(model, structure, full, after)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="A plan only shrinks"):
        cut_and_repair_(model, structure, after, full, calibration=CALIBRATION)
    for one, other in zip(model.parameters(), before, strict=True):
        assert torch.equal(one, other)


def last_ones(asked):
    """Chooses the last groups of all; notes what it was asked."""

    def choose(dimension, count, kept, calibration):
        asked.append((dimension.name, count, kept, calibration))
        return list(range(count - kept, count))

    return choose


@pytest.mark.parametrize("repair", ["none", "refit"])
def test_groups_can_be_chosen_when_their_block_is_reached(model, repair):
    structure, full, after = plans_of(model)
    expected = full.keep(
        {name: range(full.count(name) - len(groups), full.count(name)) for name, groups in A_PLAN.items()}
    )
    plain, asked = copy.deepcopy(model), []
    found = cut_and_repair_(
        model,
        structure,
        full,
        after,
        calibration=CALIBRATION,
        repair=repair_of(repair),
        hooks=CutHooks(choose=last_ones(asked)),
    )
    assert found == expected
    cut_and_repair_(plain, structure, full, expected, calibration=CALIBRATION, repair=repair_of(repair))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [call[:3] for call in asked] == [(d.name, d.num_groups, len(A_PLAN[d.name])) for d in structure]


def test_a_choice_is_among_the_groups_that_are_left(model):
    structure, full, halfway = plans_of(model)
    slice_(model, structure, full, halfway)
    after = halfway.keep({"layers.0.channels": [0, 1], "layers.1.heads": [0, 1]})
    asked = []
    found = cut_and_repair_(
        model, structure, halfway, after, calibration=CALIBRATION, hooks=CutHooks(choose=last_ones(asked))
    )
    assert found.kept == {**halfway.kept, "layers.0.channels": (11, 20), "layers.1.heads": (2, 3)}
    assert [call[:3] for call in asked] == [("layers.0.channels", 6, 2), ("layers.1.heads", 3, 2)]


def test_a_choice_sees_what_the_blocks_before_have_become(model):
    structure, full, after = plans_of(model)
    seen = {}

    def choose(dimension, count, kept, calibration):
        assert calibration.layer == dimension.layer
        seen[dimension.name] = calibration.features(dimension.consumer.module, moment=True).moment
        return list(range(kept))

    dense = copy.deepcopy(model)
    found = cut_and_repair_(model, structure, full, after, calibration=CALIBRATION, hooks=CutHooks(choose=choose))
    first = {d.name: range(found.count(d.name)) for d in structure.of_layer(0)}
    cut_and_repair_(dense, structure, full, full.keep(first), calibration=CALIBRATION)
    layerwise = LayerwisePass(dense, structure, CALIBRATION)
    layerwise.advance()
    expected = layerwise.features("model.layers.1.self_attn.o_proj", moment=True).moment
    torch.testing.assert_close(seen["layers.1.heads"], expected, rtol=1e-4, atol=1e-5)


def test_models_that_are_cut_at_once_keep_the_plan_that_was_given(model):
    structure, full, after = plans_of(model)
    asked = []
    batches = [{"input_ids": sequence[None]} for sequence in CALIBRATION]
    assert (
        cut_and_repair_(model, structure, full, after, calibration=batches, hooks=CutHooks(choose=last_ones(asked)))
        == after
    )
    assert not asked


@pytest.mark.parametrize("criterion", ["wanda", "osscar"])
@pytest.mark.parametrize(("repair", "dense"), [("refit", 0), ("stream", 1)])
def test_each_consumer_takes_one_run_of_its_block_and_one_goes_on(model, enough_tokens, criterion, repair, dense):
    """Beside that of the uncut model; and finished attention does not run in the one that goes on."""
    calls = Counter()
    for name in ("", ".self_attn.q_proj", ".mlp.up_proj"):
        module = model.get_submodule(f"model.layers.0{name}")
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    structure, full, after = plans_of(model)

    def choose(dimension, count, kept, calibration):
        consumer_scores(criterion_of(criterion), model, dimension, count, calibration)
        return range(kept)

    data, hooks = [token_ids(1, 8, seed=seed)[0] for seed in range(4)], CutHooks(choose=choose)
    cut_and_repair_(model, structure, full, after, calibration=data, repair=repair_of(repair), hooks=hooks)
    assert calls == {"": 3 + dense, ".self_attn.q_proj": 2 + dense, ".mlp.up_proj": 2 + dense}


@pytest.mark.parametrize("batches", [CALIBRATION, [{"input_ids": token_ids()}]], ids=["by blocks", "at once"])
def test_without_repair_calibration_data_change_nothing(model, batches):
    plain = copy.deepcopy(model)
    structure, full, after = plans_of(model)
    assert cut_and_repair_(model, structure, full, after, calibration=batches, repair=NoRepair()) == after
    slice_(plain, structure, full, after)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
