from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.pruning.runs import (
    STEPS,
    Outcome,
    Poison,
    adapted_model,
    arguments_of,
    make_trainer,
    num_hooks,
    pruning_config,
    rows,
    train,
    train_with_trl,
)
from transformers import Trainer, TrainerCallback, TrainingArguments

from loraprune import PruningCallback
from loraprune.pruning.errors import TrainingDivergedError
from loraprune.pruning.resume import last_checkpoint


class Weights(TrainerCallback):
    """Remembers the trained weights at the end of every step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {name: p for name, p in kwargs["model"].named_parameters() if p.requires_grad}
        self.after[state.global_step] = {name: p.detach().clone() for name, p in trained.items()}


@pytest.mark.filterwarnings("ignore:Training ended")
class TestSkippedSteps:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["NaN", "Inf"])
    def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_counted_and_announced(
        self, tmp_path: Path, value: float
    ) -> None:
        callback, weights = PruningCallback(pruning_config()), Weights()
        with pytest.warns(UserWarning, match="Step 9: NaN or Inf in the gradients; the step is skipped"):
            outcome = train(tmp_path, [Poison([9], value), callback, weights])
        assert callback.skipped_steps == [9]
        assert callback.run is not None
        assert callback.run.ratio > 0.4
        for name, value_after in weights.after[9].items():
            assert torch.equal(value_after, weights.after[8][name]), name
        assert any(not torch.equal(v, weights.after[9][name]) for name, v in weights.after[10].items())
        assert all(torch.isfinite(parameter).all() for parameter in outcome.model.parameters())

    @pytest.mark.filterwarnings("ignore:Step 2")
    @pytest.mark.parametrize("criterion", ["fisher", "lora"])
    def test_the_evidence_of_a_skipped_step_is_thrown_away(self, tmp_path: Path, criterion: str) -> None:
        config = pruning_config(criterion=criterion)

        class Updates(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                updates.append(callback.run.average.updates)

        updates: list[int] = []
        callback = PruningCallback(config)
        train(tmp_path, [Poison([2]), Updates(), callback], max_steps=40)
        assert updates[:4] == [1, 1, 2, 3]

    @pytest.mark.filterwarnings("ignore:Step")
    def test_a_loss_that_is_nan_harms_neither_weights_nor_scores(self, tmp_path: Path) -> None:
        class NanLoss(Trainer):
            def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                loss = super().compute_loss(*args, **kwargs)
                return loss * float("nan") if self.state.global_step + 1 in (2, 4, 5) else loss

        callback = PruningCallback(pruning_config())
        trainer = NanLoss(
            model=adapted_model(),
            args=TrainingArguments(**arguments_of(tmp_path)),
            train_dataset=rows(),
            callbacks=[callback],
        )
        trainer.train()
        assert callback.skipped_steps == [2, 4, 5]
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
        assert all(torch.isfinite(scores).all() for scores in callback.run.importance.values())
        assert all(torch.isfinite(parameter).all() for parameter in Outcome(trainer).model.parameters())

    @pytest.mark.filterwarnings("ignore:Step")
    def test_a_cut_without_any_usable_score_waits_for_one(self, tmp_path: Path) -> None:
        # The first cut is due after step 3, and nothing was seen until step 5.
        callback = PruningCallback(pruning_config())
        train(tmp_path, [Poison([1, 2, 3, 4]), callback])
        assert callback.run is not None
        assert [record.step for record in callback.run.records] == [5, 5, 6]
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)

    @pytest.mark.filterwarnings("ignore:Step")
    def test_skipped_steps_that_are_not_in_a_row_never_stop_the_run(self, tmp_path: Path) -> None:
        callback = PruningCallback(pruning_config(max_skipped_steps=1))
        outcome = train(tmp_path, [Poison(range(1, STEPS, 2)), callback])
        assert len(callback.skipped_steps) == STEPS // 2
        assert outcome.trainer.state.global_step == STEPS

    @pytest.mark.filterwarnings("ignore:Step 9")
    def test_trls_trainer_skips_the_step_too(self, tmp_path: Path) -> None:
        callback, weights = PruningCallback(pruning_config()), Weights()
        train_with_trl(tmp_path, [Poison([9]), callback, weights])
        assert callback.skipped_steps == [9]
        for name, value in weights.after[9].items():
            assert torch.equal(value, weights.after[8][name]), name


@pytest.mark.filterwarnings("ignore:Step")
class TestDivergence:
    def diverged(
        self,
        folder: Path,
        *,
        limit: int,
        start: int,
        save_steps: int = 100,
        save_total_limit: int | None = None,
        **changes: Any,
    ) -> tuple[PruningCallback, Weights, str]:
        callback = PruningCallback(pruning_config(max_skipped_steps=limit, **changes))
        weights = Weights()
        self.model = adapted_model()
        poison = Poison(range(start, STEPS + 1))
        saving = {"save_strategy": "steps", "save_steps": save_steps, "save_total_limit": save_total_limit}
        with pytest.raises(TrainingDivergedError) as caught:
            train(folder, [poison, callback, weights], model=self.model, **saving)
        return callback, weights, str(caught.value)

    @pytest.mark.parametrize(("limit", "steps"), [(0, [8]), (2, [8, 9, 10])])
    def test_one_skipped_step_more_than_allowed_ends_the_run_with_an_error(
        self, tmp_path: Path, limit: int, steps: list[int]
    ) -> None:
        callback, weights, message = self.diverged(tmp_path, limit=limit, start=8)
        assert callback.skipped_steps == steps
        assert max(weights.after) == steps[-1]
        assert f"of {len(steps)} steps in a row, from step 8 on" in message
        assert "lower learning rate" in message

    def test_a_run_that_saves_nothing_does_not_say_that_it_did(self, tmp_path: Path) -> None:
        callback = PruningCallback(pruning_config(max_skipped_steps=0))
        with pytest.raises(TrainingDivergedError) as caught:
            train(tmp_path, [Poison([8]), callback])
        assert "saved" not in str(caught.value)

    def test_the_newest_state_that_a_good_step_came_after_is_the_one_that_is_kept(self, tmp_path: Path) -> None:
        _, weights, message = self.diverged(tmp_path, limit=2, start=8, save_steps=1, save_total_limit=2)
        # After step 7 everything was NaN: what was saved then is not gone on from, and nothing is rotated away.
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "diverged-7"]
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
        assert f"saved in {tmp_path} (checkpoint-6)" in message
        adapter = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
        assert len(adapter) == 2 * 7 * 2
        for name, value in adapter.items():
            assert torch.equal(value, weights.after[6][name.replace(".weight", ".default.weight")]), name

    def test_a_run_that_had_saved_nothing_says_so(self, tmp_path: Path) -> None:
        _, _, message = self.diverged(tmp_path, limit=2, start=8)
        assert "No state was saved before that" in message
        assert last_checkpoint(tmp_path) is None

    @pytest.mark.parametrize("lead", [False, True])
    @pytest.mark.parametrize("strategy", ["steps", "epoch"])
    def test_nothing_is_saved_while_steps_are_skipped(self, tmp_path: Path, lead: bool, strategy: str) -> None:
        callback = PruningCallback(pruning_config(max_skipped_steps=9))
        changes = {"save_strategy": strategy, "save_steps": 1, "max_steps": 6, "num_train_epochs": 1}
        trainer = make_trainer(tmp_path, [callback], dataset=rows(12), **changes)
        if lead:
            callback.lead_(trainer)
        trainer.callback_handler.callbacks.insert(0, Poison([3, 4, 6]))
        trainer.train()
        saved = sorted(path.name for path in tmp_path.iterdir())  # an epoch is three steps long
        assert saved == (["checkpoint-1", "checkpoint-2", "checkpoint-5"] if strategy == "steps" else [])

    def test_the_loss_of_skipped_steps_is_not_logged(self, tmp_path: Path) -> None:
        callback = PruningCallback(pruning_config(max_skipped_steps=9))
        outcome = train(tmp_path, [Poison([4, 9]), callback], logging_steps=2)
        assert [point["step"] for point in callback.history] == [2, 6, 8, 12]
        assert len(outcome.losses) == 4

    @pytest.mark.parametrize("apply", ["slice", "mask"])
    def test_no_hook_is_left_on_the_model(self, tmp_path: Path, apply: str) -> None:
        hooks = num_hooks(adapted_model())
        self.diverged(tmp_path, limit=1, start=4, repair="none", apply=apply)  # between two cuts
        assert num_hooks(self.model) == hooks

    def test_a_run_that_diverged_makes_no_cut_on_its_last_step(self, tmp_path: Path) -> None:
        callback, _, _ = self.diverged(tmp_path, limit=1, start=5)  # the last cut is due after step 6
        assert callback.run is not None
        assert [record.step for record in callback.run.records] == [3, 5]

    def test_the_saved_state_can_be_gone_on_from(self, tmp_path: Path) -> None:
        self.diverged(tmp_path, limit=2, start=8, save_steps=3)
        checkpoint = last_checkpoint(tmp_path)
        assert checkpoint is not None
        model, callback = adapted_model(), PruningCallback(pruning_config(max_skipped_steps=2))
        callback.restore_(model, checkpoint)
        outcome = train(tmp_path, [callback], model=model, resume=checkpoint)
        assert outcome.trainer.state.global_step == STEPS
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
