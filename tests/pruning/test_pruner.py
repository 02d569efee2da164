"""Pruning in a loop of one's own, which ends where a Trainer ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tests.models import logits_of, tiny_model, token_ids
from tests.pruning.runs import (
    BATCH,
    CUT_STEPS,
    STEPS,
    adapted_model,
    logits,
    make_trainer,
    num_hooks,
    pruning_config,
    rows,
)
from torch.optim import AdamW
from torch.utils.data import Sampler, SequentialSampler
from transformers import Adafactor, Trainer, get_cosine_schedule_with_warmup

import loraprune
from loraprune import Pruner, PruningCallback, PruningConfig, TrainingDivergedError, describe
from loraprune.importance.configs import Pst

CONFIGS = {
    "fisher": {},
    "lora": {"criterion": "lora"},
    "taylor": {"criterion": "taylor"},
    "wanda": {"criterion": "wanda"},
    "compresso": {"criterion": "compresso"},
    "mask": {"apply": "mask", "repair": "none"},
    "blocks": {"dimensions": ["blocks"], "repair": "none"},
    "pst": {"criterion": "pst", "cuts": 1},
}


class InOrder(Trainer):
    """Takes rows in their order."""

    def _get_train_sampler(self, *given: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


def config_of(name: str) -> PruningConfig:
    return pruning_config(**CONFIGS[name])


def batches() -> list[torch.Tensor]:
    return list(torch.tensor(rows()["input_ids"][:]).split(BATCH))


CALIBRATION = [torch.tensor(ids) for ids in rows()["input_ids"][:6]]


class Loop:
    """A training loop as somebody would write it."""

    def __init__(self, config: PruningConfig, *, skip_to: dict[str, Any] | None = None) -> None:
        self.model = adapted_model()
        self.pruner = Pruner(self.model, config, total_steps=STEPS, calibration=CALIBRATION)
        if skip_to is not None:
            self.pruner.load_state_dict(skip_to["pruner"])
            set_peft_model_state_dict(self.model, skip_to["adapter"])
        self.optimizer = AdamW(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01, fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, 0, STEPS)
        if skip_to is not None:
            self.optimizer.load_state_dict(skip_to["optimizer"])
            self.schedule.load_state_dict(skip_to["schedule"])

    def run(
        self, start: int = 0, end: int = STEPS, spoil: Callable[[int, Any], None] = lambda step, model: None
    ) -> Any:
        self.model.train()
        for step, ids in list(enumerate(batches()))[start:end]:
            items = torch.tensor(ids[:, 1:].numel())
            self.model(input_ids=ids, labels=ids, num_items_in_batch=items).loss.backward()
            spoil(step + 1, self.model)
            torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
            if self.pruner.observe(self.optimizer):
                self.optimizer.step()
            self.schedule.step()
            self.pruner.step(self.optimizer)
            self.optimizer.zero_grad()
        return self

    def state(self) -> dict[str, Any]:
        return {
            "pruner": self.pruner.state_dict(),
            "adapter": get_peft_model_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loop_of_ones_own_ends_bitwise_where_the_trainer_ends(name: str, tmp_path: Path) -> None:
    callback = PruningCallback(config_of(name), CALIBRATION)
    trainer = make_trainer(tmp_path, [callback], trainer_class=InOrder)
    trainer.train()
    loop = Loop(config_of(name)).run()
    loop.pruner.end()
    assert callback.run is not None
    assert loop.pruner.plan == callback.run.plan
    assert loop.pruner.ratio == callback.run.ratio > 0.0
    assert_same(loop.weights, {key: value.detach() for key, value in trainer.model.state_dict().items()})


@pytest.mark.parametrize("name", ["fisher", "compresso", "pst"])
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_run_that_goes_on_from_its_state_ends_bitwise_as_one_without_a_stop(
    name: str, stop: int, tmp_path: Path
) -> None:
    whole = Loop(config_of(name)).run()
    first = Loop(config_of(name)).run(end=stop)
    torch.save(first.state(), tmp_path / "state.pt")
    second = Loop(config_of(name), skip_to=torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.pruner.steps == stop
    second.run(start=stop)
    whole.pruner.end()
    second.pruner.end()
    assert second.pruner.summary()["ratio" if name != "pst" else "reached"] > 0.0
    assert_same(second.weights, whole.weights)


def test_cuts_are_told_of_and_leave_no_hooks() -> None:
    loop = Loop(pruning_config())
    hooks = num_hooks(loop.model)
    made = []
    step = loop.pruner.step
    loop.pruner.step = lambda optimizer: made.append(step(optimizer))  # type: ignore[method-assign,assignment]
    loop.run()
    loop.pruner.end()
    assert [number for number, cut in enumerate(made, 1) if cut is not None] == CUT_STEPS
    assert num_hooks(loop.model) < hooks
    summary = loop.pruner.summary()
    assert [cut["step"] for cut in summary["cuts"]] == CUT_STEPS
    assert (summary["steps"], summary["skipped_steps"]) == (STEPS, [])


@pytest.mark.parametrize("allocation", ["balanced", "global"])
def test_what_a_loop_leaves_is_saved_as_a_checkpoint(allocation: str, tmp_path: Path) -> None:
    loop = Loop(pruning_config(allocation=allocation)).run()
    loop.pruner.end()
    expected = logits(loop.model)
    assert {d.name: d.num_groups for d in describe(loop.model)} == {
        name: len(groups) for name, groups in loop.pruner.plan.kept.items()
    }
    loraprune.save(loop.model, tmp_path / "smaller")
    torch.testing.assert_close(logits(loraprune.load(tmp_path / "smaller")), expected, rtol=0.0, atol=1e-4)


def test_a_model_without_an_adapter_is_pruned_while_all_of_it_is_tuned(tmp_path: Path) -> None:
    model, ids = tiny_model(), token_ids(4, 12)
    pruner = Pruner(model, pruning_config(criterion="taylor"), total_steps=STEPS, calibration=ids)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(STEPS):
        model(input_ids=ids, labels=ids).loss.backward()
        assert pruner.observe()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(optimizer)
    pruner.end()
    assert pruner.ratio == pytest.approx(0.5, abs=0.05)
    expected = logits_of(model, ids)
    loraprune.save(model, tmp_path / "smaller")
    torch.testing.assert_close(logits_of(loraprune.load(tmp_path / "smaller"), ids), expected, rtol=0.0, atol=1e-4)


def poison(*steps: int) -> Callable[[int, Any], None]:
    def spoil(step: int, model: Any) -> None:
        if step in steps:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")

    return spoil


def test_a_step_with_nan_is_skipped_and_counted() -> None:
    loop = Loop(pruning_config())
    with pytest.warns(UserWarning, match="Step 4: NaN or Inf"):
        loop.run(spoil=poison(4))
    assert loop.pruner.skipped_steps == [4]
    assert loop.pruner.ratio == pytest.approx(0.5, abs=0.05)


@pytest.mark.filterwarnings("ignore:Step")
def test_a_run_whose_gradients_stay_nan_ends_with_an_error() -> None:
    loop = Loop(pruning_config(max_skipped_steps=2))
    with pytest.raises(TrainingDivergedError, match="of 3 steps in a row, from step 4 on"):
        loop.run(spoil=poison(4, 5, 6))


class TestRefused:
    def test_a_repair_without_data(self) -> None:
        with pytest.raises(ValueError, match="pass calibration="):
            Pruner(adapted_model(), pruning_config(), total_steps=STEPS)
        Pruner(adapted_model(), pruning_config(repair="none"), total_steps=STEPS).end()

    def test_a_run_of_no_steps(self) -> None:
        with pytest.raises(ValueError, match="total_steps is 0"):
            Pruner(adapted_model(), pruning_config(repair="none"), total_steps=0)

    def test_an_optimizer_whose_state_cannot_be_cut(self) -> None:
        model = adapted_model()
        pruner = Pruner(model, pruning_config(repair="none"), total_steps=STEPS)
        optimizer = Adafactor([p for p in model.parameters() if p.requires_grad])
        ids = batches()[0]
        model(input_ids=ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        with pytest.raises(ValueError, match="Adafactor keeps 'exp_avg_sq_row'"):
            pruner.step(optimizer)

    def test_what_is_no_optimizer(self) -> None:
        pruner = Pruner(adapted_model(), pruning_config(repair="none"), total_steps=STEPS)
        with pytest.raises(ValueError, match="NoneType is not a torch optimizer"):
            pruner.step(None)  # type: ignore[arg-type]

    def test_pst_that_has_no_learning_rate(self) -> None:
        pruner = Pruner(adapted_model(), config_of("pst"), total_steps=STEPS)
        with pytest.raises(ValueError, match=r"observe\(optimizer\)"):
            pruner.observe()
        config = pruning_config(criterion="pst", cuts=1, pst=Pst(learning_rate=1e-3))
        assert Pruner(adapted_model(), config, total_steps=STEPS).observe()

    def test_a_state_of_another_run(self) -> None:
        state = Loop(pruning_config()).run(end=4).state()["pruner"]
        other = Pruner(adapted_model(), pruning_config(ratio=0.4), total_steps=STEPS, calibration=CALIBRATION)
        with pytest.raises(ValueError, match=r"other pruning options \(ratio: 0.5 -> 0.4\)"):
            other.load_state_dict(state)
        longer = Pruner(adapted_model(), pruning_config(), total_steps=20, calibration=CALIBRATION)
        with pytest.raises(ValueError, match="started with 12 steps, and this pruner has 20"):
            longer.load_state_dict(state)
        begun = Loop(pruning_config()).run(end=1).pruner
        with pytest.raises(ValueError, match="has made steps already"):
            begun.load_state_dict(state)
