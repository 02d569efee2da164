"""The criterion ``taylor`` in training, against gradients that autograd leaves in the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models import projections, sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.configs import GROUP_REDUCTIONS, TAYLOR_FORMS, Taylor
from loraprune.importance.reductions import reduced
from loraprune.importance.taylor import TaylorCriterion
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan

BATCHES = [token_ids(2, 9, seed=seed) for seed in (1, 2)]
CHANNELS = "layers.0.channels"


def loss_of(model: Any, batch: torch.Tensor, sequences: int) -> torch.Tensor:
    return sequence_losses(model, batch).sum() / sequences


def taylor_scores(model: Any, criterion: Taylor, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    structure = describe(model)
    criterion.attach(model, structure)
    sequences = sum(len(batch) for batch in batches)
    for batch in batches:
        loss_of(model, batch, sequences).backward()
    scores = criterion.scores(Plan.full(structure))
    criterion.detach()
    model.zero_grad()
    assert scores is not None
    return scores


def plain_gradients(model: Any, batches: list[torch.Tensor]) -> dict[str, tuple[Any, Any, Any]]:
    """Effective weight, mean gradient and mean square of the sequences' gradients of each layer of block 0."""
    model = copy.deepcopy(model)
    layers = projections(model, 0)
    for module in layers.values():
        module.base_layer.weight.requires_grad_(True)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for batch in batches:
        for row in batch:
            model.zero_grad()
            sequence_losses(model, row[None]).sum().backward()
            for name, module in layers.items():
                parts[name].append(module.base_layer.weight.grad.clone())
    found = {}
    for name, module in layers.items():
        grads = torch.stack(parts[name])
        update = module.scaling["default"] * (module.lora_B["default"].weight @ module.lora_A["default"].weight)
        found[name] = (module.base_layer.weight.detach() + update.detach(), grads.mean(0), grads.square().mean(0))
    return found


def expected_importance(form: str, weight: torch.Tensor, grad: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    return {
        "squared": (weight * grad) ** 2,
        "first": (weight * grad).abs(),
        "second": weight**2 * squares,
        "mix": (weight * grad - 0.5 * weight**2 * squares).abs(),
        "vectorize": weight * grad,
    }[form]


def expected_channels(model: Any, form: str, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """What gate, up and down give to each channel."""
    parts = []
    for name, (weight, grad, squares) in plain_gradients(model, batches).items():
        if name in ("gate_proj", "up_proj", "down_proj"):
            parts.append(expected_importance(form, weight, grad, squares).sum(0 if name == "down_proj" else 1).abs())
    return parts


@pytest.fixture
def model() -> Any:
    return with_lora(tiny_model("llama"))


@pytest.mark.parametrize("form", TAYLOR_FORMS)
@pytest.mark.parametrize("offload", [False, True])
def test_accumulated_micro_batches_give_what_autograd_gives(model: Any, form: str, offload: bool) -> None:
    found = taylor_scores(model, TaylorCriterion(form, offload=offload), BATCHES)[CHANNELS]
    expected = torch.stack(expected_channels(model, form, BATCHES)).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("form", TAYLOR_FORMS)
def test_a_single_micro_batch_is_summed_up_at_once(model: Any, form: str) -> None:
    at_once, kept = TaylorCriterion(form), TaylorCriterion(form)
    at_once.micro_batches = 1
    found, expected = (taylor_scores(model, criterion, BATCHES[:1]) for criterion in (at_once, kept))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6 * float(values.max()))


def test_a_single_micro_batch_keeps_no_gradient(model: Any) -> None:
    criterion = TaylorCriterion("squared")
    criterion.micro_batches = 1
    structure = describe(model)
    criterion.attach(model, structure)
    loss_of(model, BATCHES[0], 2).backward()
    assert all(layer._gradient is None for layer in criterion._layers.values())
    assert all(layer._sums for layer in criterion._layers.values())
    criterion.detach()


@pytest.mark.parametrize("form", ["squared", "second"])
def test_checkpointing_changes_nothing(model: Any, form: str) -> None:
    expected = taylor_scores(model, TaylorCriterion(form), BATCHES)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    found = taylor_scores(model, TaylorCriterion(form), BATCHES)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


def test_base_weights_are_not_asked_for_gradients(model: Any) -> None:
    taylor_scores(model, TaylorCriterion(), BATCHES)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())


def test_scores_are_those_since_the_last_call(model: Any) -> None:
    structure = describe(model)
    criterion = TaylorCriterion()
    criterion.attach(model, structure)
    loss_of(model, BATCHES[0], 2).backward()
    first = criterion.scores(Plan.full(structure))
    assert first is not None
    assert criterion.scores(Plan.full(structure)) is None
    loss_of(model, BATCHES[0], 2).backward()
    again = criterion.scores(Plan.full(structure))
    assert again is not None
    torch.testing.assert_close(again[CHANNELS], first[CHANNELS])
    criterion.detach()


def test_a_model_without_adapter_is_heard_too() -> None:
    plain = tiny_model("llama").requires_grad_(False)
    structure = describe(plain)
    criterion = TaylorCriterion("first")
    criterion.attach(plain, structure)
    loss_of(plain, BATCHES[0], 2).backward()
    scores = criterion.scores(Plan.full(structure))
    criterion.detach()
    assert scores is not None
    assert all(bool((values > 0).all()) for values in scores.values())


@pytest.mark.parametrize("how", GROUP_REDUCTIONS)
def test_the_layers_of_a_group_are_reduced(model: Any, how: str) -> None:
    parts = torch.stack(expected_channels(model, "first", BATCHES))
    found = taylor_scores(model, TaylorCriterion("first", how), BATCHES)[CHANNELS]
    expected = {
        "sum": parts[0] + parts[1] + parts[2],
        "mean": (parts[0] + parts[1] + parts[2]) / 3,
        "max": torch.maximum(torch.maximum(parts[0], parts[1]), parts[2]),
        "prod": (parts[0] * parts[1] * parts[2]) ** (1 / 3),
        "first": parts[0],
        "last": parts[2],
    }[how]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_an_unknown_form_or_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="taylor_form is 'third'; choose one of squared, first"):
        Taylor("third")
    with pytest.raises(ValueError, match="group_reduction is 'median'; choose one of sum, mean"):
        Taylor(reduction="median")
    with pytest.raises(ValueError, match="There is no reduction 'median'"):
        reduced([torch.ones(2)], "median")
