from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import tiny_model, token_ids, with_lora

from loraprune.importance.configs import CRITERIA
from loraprune.measure.benchmark.timing import in_turns
from loraprune.measure.benchmark.training_step import TrainingStep, Work, cut_at_random_, recompute_
from loraprune.pruning.config import PruningConfig
from loraprune.surgery.masking import masked


def work(**changes: Any) -> Work:
    ids = token_ids(2, 6)
    return Work({"input_ids": ids, "labels": ids, "use_cache": False}, **changes)


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def listening(name: str) -> PruningConfig:
    return PruningConfig(criterion=name, repair="none", head_counts="any")


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "position"])
def test_a_criterion_listens_for_the_length_of_a_turn_and_leaves_the_model_as_it_was(name: str) -> None:
    model = with_lora(tiny_model(attention="sdpa"))
    before = hooks_of(model)
    step = TrainingStep(model, work(), criterion=listening(name))
    in_turns({"only": step.contender()}, repeats=2, warmup=1)
    assert hooks_of(model) == before
    assert step.run is not None
    assert step.run.ratio == 0.0


def test_steps_that_share_a_model_do_plain_tuning_in_between() -> None:
    model = with_lora(tiny_model(attention="sdpa"))
    plain = TrainingStep(model, work())
    contenders = {"plain": plain.contender(), "fisher": TrainingStep(model, work(), criterion=listening("fisher"))}
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(hooks_of(model)))
    in_turns({"plain": contenders["plain"], "fisher": contenders["fisher"].contender()}, repeats=2, warmup=0)
    assert seen[0] == seen[2] < seen[1] == seen[3]


def test_a_step_changes_the_adapter_alone_and_clears_the_gradients() -> None:
    model = with_lora(tiny_model())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with TrainingStep(model, work(accumulation=2)).turn() as step:
        step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert all(value.grad is None for value in model.parameters())


def test_masks_are_on_for_the_length_of_a_turn() -> None:
    model = with_lora(tiny_model())
    pruned = with_lora(tiny_model())
    run = cut_at_random_(pruned, 0.5, head_counts="any")
    ids = token_ids()
    with masked(model, run.structure, run.plan), torch.no_grad():
        wanted = model(input_ids=ids).logits
    seen: list[torch.Tensor] = []
    with TrainingStep(model, work(), masks=(run.structure, run.plan)).turn(), torch.no_grad():
        seen.append(model.eval()(input_ids=ids).logits)
    assert torch.equal(seen[0], wanted)
    with torch.no_grad():
        assert torch.allclose(pruned.eval()(input_ids=ids).logits, wanted, atol=1e-5)
        assert not torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-2)


def test_recomputing_takes_less_memory() -> None:
    ids = token_ids(4, 48)
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    peaks = []
    for recomputes in (False, True):
        model = with_lora(tiny_model(attention="sdpa", num_hidden_layers=4))
        if recomputes:
            recompute_(model)
        step = TrainingStep(model, Work(batch))
        with step.turn() as call:
            call()
        peaks.append(step.peak_bytes())
    assert peaks[1] < 0.8 * peaks[0]


def test_plain_tuning_does_not_pay_for_the_look_at_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(
        "loraprune.measure.benchmark.training_step.gradients_finite", lambda model: not looked.append(1)
    )
    model = with_lora(tiny_model(attention="sdpa"))
    with TrainingStep(model, work()).turn() as step:
        step()
    assert not looked
    with TrainingStep(model, work(), criterion=listening("random")).turn() as step:
        step()
    assert looked == [1]
