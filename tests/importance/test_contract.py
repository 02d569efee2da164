"""What every criterion must do. A new criterion adds a row to the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tests.models import FAMILIES, features, logits_of, projections, sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.baselines import PositionCriterion, RandomCriterion
from loraprune.importance.compresso import CompressoCriterion
from loraprune.importance.configs import (
    GROUP_CRITERIA,
    TAYLOR_FORMS,
    Compresso,
    CriterionConfig,
    Flap,
    LoraGuided,
    Magnitude,
    Osscar,
    Random,
    Taylor,
    Wanda,
)
from loraprune.importance.consumer_inputs import FeatureCriterion
from loraprune.importance.criterion import Criterion
from loraprune.importance.fisher import FisherCriterion
from loraprune.importance.lora import LoraCriterion
from loraprune.importance.magnitude import MagnitudeCriterion
from loraprune.importance.taylor import TaylorCriterion
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids(4, 9)


@dataclass(frozen=True)
class Row:
    """A criterion under test."""

    make: Callable[[], Criterion]
    every_step: bool
    reads_model: bool = True


TABLE = {
    "fisher": Row(FisherCriterion, every_step=True),
    "lora": Row(LoraCriterion, every_step=True),
    "lora, absolute": Row(lambda: LoraCriterion("absolute"), every_step=True),
    **{f"taylor, {form}": Row(partial(TaylorCriterion, form), every_step=True) for form in TAYLOR_FORMS},
    "lora, mean": Row(lambda: LoraCriterion(reduction="mean"), every_step=True),
    "magnitude, prod": Row(lambda: MagnitudeCriterion("prod"), every_step=False),
    "wanda": Row(lambda: Wanda().build(), every_step=True),
    "flap": Row(lambda: Flap().build(), every_step=True),
    "magnitude": Row(MagnitudeCriterion, every_step=False),
    # Gates are sampled, and start with a little noise: a permuted model draws others.
    "compresso": Row(lambda: Compresso().build(), every_step=False, reads_model=False),
    "random": Row(RandomCriterion, every_step=False, reads_model=False),
    "position": Row(PositionCriterion, every_step=False, reads_model=False),
}
EVERY_ROW = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())


def scores_of(criterion, model, structure=None, plan=None):
    structure = structure or describe(model)
    criterion.attach(model, structure)
    model.zero_grad()
    sequence_losses(model, IDS).sum().backward()
    scores = criterion.scores(plan or Plan.full(structure))
    criterion.detach()
    return scores


def test_the_table_covers_every_criterion():
    assert {name.partition(",")[0] for name in TABLE} == set(GROUP_CRITERIA) - {"osscar"}


@EVERY_ROW
@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_gets_a_finite_score_that_is_not_negative(row, family):
    model = with_lora(tiny_model(family))
    scores = scores_of(row.make(), model)
    assert {name: values.shape for name, values in scores.items()} == {
        "layers.0.heads": (4,),
        "layers.0.channels": (24,),
        "layers.1.heads": (4,),
        "layers.1.channels": (24,),
    }
    for values in scores.values():
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert torch.isfinite(values).all()
        assert (values >= 0).all()
        assert len(values.unique()) == len(values)


@EVERY_ROW
def test_only_the_groups_that_are_kept_get_scores(row, model, structure):
    adapted = with_lora(model)
    full = Plan.full(structure)
    plan = full.keep({"layers.0.heads": [1, 3], "layers.1.channels": [0, 7, 9]})
    slice_(adapted, structure, full, plan)
    scores = scores_of(row.make(), adapted, structure, plan)
    assert {name: len(values) for name, values in scores.items()} == {
        name: len(groups) for name, groups in plan.kept.items()
    }


@EVERY_ROW
def test_the_same_model_and_data_give_the_same_scores(row, model):
    adapted = with_lora(model)
    one, other = scores_of(row.make(), adapted), scores_of(row.make(), adapted)
    for name, values in one.items():
        assert torch.equal(values, other[name])


@EVERY_ROW
def test_weights_gradients_and_modules_are_left_as_they_were(row, model):
    adapted = with_lora(model)
    weights = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    settings = [{key: value for key, value in vars(m).items() if key[0] != "_"} for m in adapted.modules()]
    logits = logits_of(adapted, IDS)
    sequence_losses(adapted, IDS).sum().backward()
    gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}

    scores_of(row.make(), adapted)

    assert torch.equal(logits_of(adapted, IDS), logits)
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad == (name in trained)
        assert torch.equal(parameter.grad, gradients[name]) if name in gradients else parameter.grad is None
    assert not any(m._forward_pre_hooks or m._forward_hooks or m._backward_hooks for m in adapted.modules())
    assert [{k: v for k, v in vars(m).items() if k[0] != "_"} for m in adapted.modules()] == settings


@torch.no_grad()
def permute_(parameter, dim, order):
    parameter.copy_(parameter.index_select(dim, torch.tensor(order)))


def permute_groups_(adapted, heads, channels):
    """Put KV heads (with their query heads) and channels of every layer into another order."""
    sizes = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 8}
    for layer in range(2):
        for name, module in projections(adapted, layer).items():
            order = features(heads, sizes[name]) if name in sizes else channels
            consumer = name in ("o_proj", "down_proj")
            permute_(module.base_layer.weight, int(consumer), order)
            if consumer:
                permute_(module.lora_A["default"].weight, 1, order)
            else:
                permute_(module.lora_B["default"].weight, 0, order)
                if module.base_layer.bias is not None:
                    permute_(module.base_layer.bias, 0, order)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.reads_model])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_order_of_the_groups_does_not_matter(name, family):
    row = TABLE[name]
    adapted = with_lora(tiny_model(family))
    orders = {"heads": [2, 0, 3, 1], "channels": torch.randperm(24).tolist()}
    before, logits = scores_of(row.make(), adapted), logits_of(adapted, IDS)
    permute_groups_(adapted, orders["heads"], orders["channels"])
    torch.testing.assert_close(logits_of(adapted, IDS), logits, rtol=0, atol=1e-5)
    for name, values in scores_of(row.make(), adapted).items():
        expected = before[name][orders[name.rpartition(".")[2]]]
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5 * expected.max().item())


@EVERY_ROW
def test_criteria_that_follow_the_data_say_so(row):
    assert row.make().every_step == row.every_step


def test_every_configuration_builds_what_does_its_work():
    built = {name: type(kind().build()) for name, kind in GROUP_CRITERIA.items()}
    assert built == {
        "fisher": FisherCriterion,
        "lora": LoraCriterion,
        "taylor": TaylorCriterion,
        "magnitude": MagnitudeCriterion,
        "wanda": FeatureCriterion,
        "flap": FeatureCriterion,
        "random": RandomCriterion,
        "position": PositionCriterion,
        "compresso": CompressoCriterion,
        "osscar": FeatureCriterion,
    }
    assert {name: kind.comparable for name, kind in GROUP_CRITERIA.items()} == {
        name: kind.comparable for name, kind in built.items()
    }


def test_options_reach_what_does_the_work():
    assert LoraGuided("absolute").build().form == "absolute"
    taylor = Taylor("mix", "max", offload=True).build()
    assert (taylor.form, taylor.reduction, taylor.offload) == ("mix", "max", True)
    assert LoraGuided(reduction="max").build().reduction == Magnitude("max").build().reduction == "max"
    assert (Random().build(7).seed, Random(3).build(7).seed) == (7, 3)
    assert Osscar(0.5).damping == 0.5


def test_what_scores_no_groups_builds_nothing():
    with pytest.raises(TypeError, match="does not score groups"):
        CriterionConfig().build()
