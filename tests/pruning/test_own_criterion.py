"""Criteria as objects: those of the package, and one of a test's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.runs import STEPS, StopAfter, adapted_model, byte_model, pruned, pruning_config, train

from loraprune import OneshotConfig, Plan, PruningCallback, PruningConfig, RunOptions, oneshot
from loraprune.criteria import (
    Compresso,
    Criterion,
    Fisher,
    Flap,
    LoraGuided,
    Magnitude,
    Position,
    Random,
    Taylor,
    Wanda,
)
from loraprune.importance.configs import CRITERIA


class Counting:
    """Likes the last groups best, and counts what it is asked."""

    def __init__(self, *, every_step: bool = False) -> None:
        self.comparable, self.every_step = True, every_step
        self.calls: list[str] = []

    def attach(self, model: Any, structure: Any) -> None:
        self.calls.append("attach")
        self.structure = structure

    def scores(self, plan: Plan) -> dict[str, torch.Tensor]:
        self.calls.append("scores")
        return {d.name: torch.arange(1.0, plan.count(d.name) + 1) for d in self.structure}

    def detach(self) -> None:
        self.calls.append("detach")


OURS = {
    "fisher": Fisher(),
    "lora": LoraGuided("absolute", "max"),
    "taylor": Taylor("first", "mean", offload=True),
    "magnitude": Magnitude("prod"),
    "wanda": Wanda(),
    "flap": Flap(),
    "random": Random(),
    "position": Position(),
    "compresso": Compresso(prompt="Be brief."),
}


def test_every_criterion_of_ours_is_tried_here() -> None:
    assert set(OURS) == set(CRITERIA)


@pytest.mark.parametrize("name", CRITERIA)
def test_an_object_of_ours_is_the_same_as_its_name_and_options(name: str) -> None:
    config = PruningConfig(criterion=OURS[name])
    assert config.criterion == OURS[name]
    assert config.criterion_name == name
    assert PruningConfig.from_saved(config.to_saved()) == config


def test_options_of_objects_and_fields_are_the_same() -> None:
    assert PruningConfig(criterion=Taylor(form="first")) == PruningConfig(criterion="taylor", taylor_form="first")
    assert PruningConfig(criterion=Taylor("first"), taylor_form="first").taylor_form == "first"
    assert PruningConfig(criterion=Taylor("first"), taylor_form="second").criterion == Taylor("second")


@pytest.mark.parametrize("every_step", [True, False])
def test_a_run_asks_a_copy_of_an_own_criterion(every_step: bool, tmp_path: Path) -> None:
    own: Criterion = Counting(every_step=every_step)
    callback, _ = pruned(tmp_path, pruning_config(criterion=own))
    assert callback.run is not None
    assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
    for dimension in callback.run.structure:
        kept = callback.run.plan.kept[dimension.name]
        assert kept == tuple(range(dimension.num_groups - len(kept), dimension.num_groups))
    used: Any = callback.run.criterion
    assert (used.calls[0], used.calls[-1]) == ("attach", "detach")
    assert used.calls.count("scores") == (6 if every_step else 3)
    assert own.calls == []  # type: ignore[attr-defined]
    assert callback.run.summary()["cuts"]


def test_an_interrupted_run_goes_on_with_an_object_of_the_same_class(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", [PruningCallback(pruning_config(criterion=Counting()))])
    train(tmp_path / "run", [PruningCallback(pruning_config(criterion=Counting())), StopAfter(4)])
    checkpoint = tmp_path / "run" / f"checkpoint-{4}"
    with pytest.raises(ValueError, match="There is no criterion 'Counting'; choose one of"):
        PruningCallback(pruning_config()).restore_(byte_model(), checkpoint)
    second, model = PruningCallback(pruning_config(criterion=Counting())), adapted_model()
    second.restore_(model, checkpoint)
    resumed = train(tmp_path / "run", [second], resume=checkpoint, model=model)
    assert resumed.trainer.state.global_step == STEPS
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


class Reading:
    """Scores groups by the consumer's weights and inputs, as the guide does."""

    comparable, every_step = False, False

    def attach(self, model: Any, structure: Any) -> None:
        self.model, self.structure, self.inputs = model, structure, {}
        self.hooks = [d.consumer.layer(model).register_forward_pre_hook(partial(self._take, d.name)) for d in structure]

    def _take(self, name: str, module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            self.inputs.setdefault(name, []).append(args[0].detach().abs().flatten(0, -2).mean(0))

    def scores(self, plan: Plan) -> dict[str, torch.Tensor] | None:
        if not self.inputs:
            return None
        found = {}
        for d in self.structure:
            mean = torch.stack(self.inputs.pop(d.name)).mean(0)
            columns = d.consumer.weight(self.model).abs().sum(0) * mean
            found[d.name] = d.consumer.group_sums(columns, plan.count(d.name))
        return found

    def detach(self) -> None:
        for hook in self.hooks:
            hook.remove()


def test_one_class_scores_under_lora_and_without_training(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    callback, _ = pruned(tmp_path, pruning_config(criterion=Reading()))
    assert callback.run is not None
    assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
    config = OneshotConfig(criterion=Reading(), ratio=0.5, cuts=2, calibration_sequences=8)
    result = oneshot(checkpoint, data, config, options=RunOptions(eval_sequences=0, latency=False))
    assert result.plan.ratio(result.structure) == pytest.approx(0.5, abs=0.05)


class Odd(Counting):
    """Gives what it was told to."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def scores(self, plan: Plan) -> Any:
        return {**super().scores(plan), **self.given}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"layers.0.heads": torch.ones(3)},
            r"Odd returned scores of shape \(3,\) for layers.0.heads, which has 4 groups now",
        ),
        ({"layers.0.heads": [1.0] * 4}, "Odd returned scores of shape list for layers.0.heads"),
        ({"layers.7.heads": torch.ones(4)}, "Odd returned scores for 'layers.7.heads', which is not a dimension"),
    ],
)
def test_scores_that_fit_no_plan_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pruned(tmp_path, pruning_config(criterion=Odd(given)))


class Half:
    """Lacks most of what a criterion has."""

    def attach(self, model: Any, structure: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Taylor, r"The criterion is the class Taylor; give an instance, Taylor\(...\)"),
        (Half(), "The criterion, an object of Half, lacks scores, detach, comparable, every_step"),
        (3, "The criterion, an object of int, lacks"),
        ("tailor", "There is no criterion 'tailor'; choose one of fisher"),
    ],
)
def test_what_is_no_criterion_is_refused(criterion: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(criterion=criterion)


def test_a_cut_waits_for_a_criterion_that_has_no_scores_yet(tmp_path: Path) -> None:
    class Late(Counting):
        def scores(self, plan: Plan) -> Any:
            super().scores(plan)
            return None if self.calls.count("scores") < 3 else super().scores(plan)

    callback, _ = pruned(tmp_path, pruning_config(criterion=Late(), cuts=1, prune_start=0.25, prune_end=0.25))
    assert callback.run is not None
    assert [record.step for record in callback.run.records] == [5]  # due at 3


class TestOneshot:
    """The same objects, without training."""

    @pytest.mark.parametrize("name", ["fisher", "taylor", "magnitude", "wanda", "flap", "random", "position"])
    def test_an_object_of_ours_is_the_same_as_its_name_and_options(self, name: str) -> None:
        config = OneshotConfig(ratio=0.5, criterion=OURS[name])
        assert config.name == name
        assert config.criterion == OURS[name]

    def test_options_of_objects_and_fields_are_the_same(self) -> None:
        by_object = OneshotConfig(ratio=0.5, criterion=Taylor("first"))
        by_name = OneshotConfig(
            ratio=0.5, criterion="taylor", taylor_form="first", group_reduction="sum", offload_grads=False
        )
        assert by_object == by_name
        changed = OneshotConfig(ratio=0.5, criterion=Taylor("first"), taylor_form="second")
        assert changed.criterion == Taylor("second")

    @pytest.mark.parametrize("cuts", [1, 4])
    @pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
    def test_an_own_criterion_scores_on_calibration_data(
        self, allocation: str, cuts: int, checkpoint: Path, data: Path
    ) -> None:
        result = oneshot(
            checkpoint,
            data,
            OneshotConfig(criterion=Counting(), cuts=cuts, allocation=allocation, calibration_sequences=8),
            options=RunOptions(eval_sequences=0, latency=False),
        )
        for dimension in result.structure:
            kept = result.plan.kept[dimension.name]
            assert kept == tuple(range(dimension.num_groups - len(kept), dimension.num_groups))
        assert result.record["settings"]["oneshot"]["method"] == "Counting"
        assert "Method `Counting`" in result.card

    def test_gradients_are_there_for_what_asks_for_them(self, checkpoint: Path, data: Path) -> None:
        class Gradients(Counting):
            def attach(self, model: Any, structure: Any) -> None:
                super().attach(model, structure)
                self.weights = {d.name: model.get_submodule(d.consumer.module).weight for d in structure}
                for weight in self.weights.values():
                    weight.requires_grad_(True)

            def scores(self, plan: Plan) -> Any:
                return {
                    d.name: d.consumer.group_sums(self.weights[d.name].grad.abs().sum(0), plan.count(d.name))
                    for d in self.structure
                }

        result = oneshot(
            checkpoint,
            data,
            OneshotConfig(criterion=Gradients(), ratio=0.5, calibration_sequences=8),
            options=RunOptions(eval_sequences=0, latency=False),
        )
        assert result.plan.ratio(result.structure) == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"criterion": Counting(), "sparsity": "2:4"}, "your own criterion Counting scores groups. Pass a ratio"),
            ({"criterion": Taylor, "ratio": 0.5}, "give an instance"),
            ({"criterion": LoraGuided(), "ratio": 0.5}, "and oneshot does not train. Use loraprune prune"),
            ({"criterion": "compresso", "ratio": 0.5}, "learns its gates up to the cut, and oneshot does not train"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_reason(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OneshotConfig(**given)
