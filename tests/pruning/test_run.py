from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.pruning.runs import (
    CUT_STEPS,
    STEPS,
    Outcome,
    adapted_model,
    logits,
    num_hooks,
    pruned,
    pruning_config,
    train,
    train_with_trl,
)
from tests.thinned import thinned

from loraprune import PruningCallback, PruningConfig
from loraprune.pruning.group_run import GroupRun
from loraprune.structure.plan import Plan


class TestPlainTuning:
    """With ratio 0 the run is plain LoRA tuning."""

    def assert_identical(self, first: Outcome, second: Outcome) -> None:
        assert first.losses == second.losses
        assert len(first.losses) == STEPS
        assert first.weights.keys() == second.weights.keys()
        for name, value in first.weights.items():
            assert torch.equal(value, second.weights[name]), name

    @pytest.mark.parametrize("refit", thinned([False, True]))
    def test_a_ratio_of_0_trains_as_a_plain_trainer_does_bit_for_bit(self, tmp_path: Path, refit: bool) -> None:
        model = adapted_model(dropout=0.1)
        config = PruningConfig(ratio=0.0, repair="refit" if refit else "none")
        callback, with_callback = pruned(tmp_path, config, model=model)
        self.assert_identical(with_callback, train(tmp_path, model=adapted_model(dropout=0.1)))
        assert callback.run is not None
        assert callback.run.plan == Plan.full(callback.run.structure)
        assert callback.run.records == []

    def test_a_ratio_of_0_trains_as_a_plain_sft_trainer_does_bit_for_bit(self, tmp_path: Path) -> None:
        callback = PruningCallback(PruningConfig(ratio=0.0, repair="none"))
        self.assert_identical(train_with_trl(tmp_path, [callback]), train_with_trl(tmp_path))

    @pytest.mark.parametrize("criterion", thinned(["fisher", "lora", "magnitude", "random"], 2))
    def test_steps_before_the_first_cut_are_those_of_plain_tuning_bit_for_bit(
        self, tmp_path: Path, criterion: str
    ) -> None:
        _, outcome = pruned(tmp_path, pruning_config(criterion=criterion))
        plain = train(tmp_path)
        # The cut comes after the step that it is named after.
        assert outcome.losses[: CUT_STEPS[0]] == plain.losses[: CUT_STEPS[0]]
        assert outcome.losses[CUT_STEPS[0]] != plain.losses[CUT_STEPS[0]]


class TestDeterminism:
    @pytest.mark.parametrize("criterion", thinned(["fisher", "lora", "magnitude", "random"], 2))
    def test_the_same_seed_gives_the_same_plan_losses_and_weights(self, tmp_path: Path, criterion: str) -> None:
        config = pruning_config(criterion=criterion)
        (first, first_outcome), (second, second_outcome) = pruned(tmp_path, config), pruned(tmp_path, config)
        assert first.run is not None
        assert second.run is not None
        assert first.run.plan == second.run.plan
        assert first.run.plan.ratio(first.run.structure) > 0.4
        assert first_outcome.losses == second_outcome.losses
        for name, value in first_outcome.weights.items():
            assert torch.equal(value, second_outcome.weights[name]), name

    @pytest.mark.full
    def test_another_seed_gives_the_random_criterion_another_plan(self, tmp_path: Path) -> None:
        plans = []
        for seed in (1, 2):
            callback, _ = pruned(tmp_path, pruning_config(criterion="random", seed=seed))
            assert callback.run is not None
            plans.append(callback.run.plan)
        assert plans[0] != plans[1]

    @pytest.mark.full
    def test_another_seed_refits_on_other_sequences(self, tmp_path: Path) -> None:
        weights = [pruned(tmp_path, pruning_config(criterion="magnitude", seed=seed))[1].weights for seed in (1, 2)]
        name = "base_model.model.model.layers.0.mlp.down_proj.base_layer.weight"
        assert not torch.equal(weights[0][name], weights[1][name])


class TestCourse:
    def test_the_ratio_climbs_to_the_target_and_the_plan_only_shrinks(self, tmp_path: Path) -> None:
        callback, _ = pruned(tmp_path)
        run = callback.run
        assert run is not None
        assert [record.step for record in run.records] == CUT_STEPS
        ratios = [record.ratio for record in run.records]
        assert ratios == sorted(ratios)
        finest = sum(dimension.parameters_per_group for dimension in run.structure.of_kind("channels"))
        assert abs(ratios[-1] - 0.5) <= 0.5 * finest / run.structure.prunable_parameters + 1e-9
        for kind in ("heads", "channels"):
            widths = [record.widths[kind][0] for record in run.records]
            assert widths == sorted(widths, reverse=True)

    def test_the_model_holds_as_many_parameters_as_the_run_says(self, tmp_path: Path) -> None:
        callback, outcome = pruned(tmp_path)
        assert callback.run is not None
        counted = sum(p.numel() for name, p in outcome.model.named_parameters() if "lora_" not in name)
        assert counted == callback.run.num_parameters == callback.run.summary()["parameters"]

    def test_every_group_has_an_importance_also_those_that_are_gone(self, tmp_path: Path) -> None:
        callback, _ = pruned(tmp_path)
        run = callback.run
        assert run is not None
        for dimension in run.structure:
            assert run.importance[dimension.name].shape == (dimension.num_groups,)
            assert torch.isfinite(run.importance[dimension.name]).all()

    def test_a_run_of_one_step_reaches_the_ratio(self, tmp_path: Path) -> None:
        callback, _ = pruned(tmp_path, max_steps=1)
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)

    def test_a_ratio_that_would_empty_a_dimension_is_refused_before_training(self, tmp_path: Path) -> None:
        model = adapted_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"A ratio of 0\.99 would empty a dimension.*at most 0\.\d+ of"):
            pruned(tmp_path, pruning_config(ratio=0.99), model=model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_lora_as_criterion_needs_an_adapter_on_every_dimension(self) -> None:
        from peft import LoraConfig, get_peft_model
        from tests.checkpoints import byte_model

        model = get_peft_model(byte_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        run = GroupRun.of(model, pruning_config(criterion="lora"))
        with pytest.raises(ValueError, match="needs LoRA on at least one layer of every group"):
            run.begin(model, STEPS)


class TestMasks:
    @pytest.mark.parametrize("criterion", thinned(["fisher", "lora", "magnitude", "random"], 2))
    def test_masking_ends_with_the_plan_and_the_logits_of_slicing(self, tmp_path: Path, criterion: str) -> None:
        (masked, masked_outcome), (sliced, sliced_outcome) = (
            pruned(tmp_path, pruning_config(criterion=criterion, repair="none", apply=apply))
            for apply in ("mask", "slice")
        )
        assert masked.run is not None
        assert sliced.run is not None
        assert masked.run.plan == sliced.run.plan
        assert masked_outcome.losses == pytest.approx(sliced_outcome.losses, rel=1e-4)
        difference = (logits(masked_outcome.model) - logits(sliced_outcome.model)).abs().max()
        assert difference <= 1e-3  # twelve Adam steps apart, whose sums are rounded in another order
        assert logits(sliced_outcome.model).abs().max() > 1.0

    def test_masked_tensors_are_cut_when_training_ends(self, tmp_path: Path) -> None:
        model = adapted_model()
        hooks_before = num_hooks(model)
        callback, outcome = pruned(tmp_path, pruning_config(repair="none", apply="mask"), model=model)
        assert callback.run is not None
        down = outcome.model.get_base_model().model.layers[0].mlp.down_proj
        kept = callback.run.plan.count("layers.0.channels")
        assert kept < 64
        assert down.base_layer.weight.shape == (32, kept)
        assert down.lora_A["default"].weight.shape[1] == kept
        assert num_hooks(outcome.model) == hooks_before
