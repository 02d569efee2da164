from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tests.checkpoints import byte_model, sentences, tiny_tokenizer
from tests.models import RECOMPUTATION
from tests.pruning.runs import (
    BATCH,
    CUT_STEPS,
    LENGTH,
    STEPS,
    StopAfter,
    adapted_model,
    arguments_of,
    logits,
    lora_config,
    make_trainer,
    num_hooks,
    pruned,
    pruning_config,
    rows,
    train,
    train_with_trl,
)
from tests.thinned import thinned
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from loraprune import PruningCallback, PruningConfig, save_pruned
from loraprune.importance.moving_average import MovingAverage
from loraprune.surgery.slicing import raw_optimizer


def tensor_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())


class Watch(TrainerCallback):
    """Calls a function with the model after every step, once all callbacks before it have done their work."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.seen: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = self.look(kwargs["model"], kwargs["optimizer"])


class TestInATrainer:
    def test_a_plain_trainer_ends_with_a_smaller_model_that_still_computes(self, tmp_path: Path) -> None:
        callback, outcome = pruned(tmp_path)
        assert isinstance(outcome.model, PeftModel)
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
        for layer, block in enumerate(outcome.model.get_base_model().model.layers):
            heads, channels = (callback.run.plan.count(f"layers.{layer}.{kind}") for kind in ("heads", "channels"))
            assert block.self_attn.q_proj.base_layer.weight.shape == (heads * 2 * 4, 32)
            assert block.self_attn.k_proj.lora_B["default"].weight.shape[0] == heads * 4
            assert block.mlp.up_proj.base_layer.out_features == channels
        assert torch.isfinite(logits(outcome.model)).all()

    @pytest.mark.parametrize("bf16", thinned([True, False]))
    def test_trls_trainer_makes_the_cuts_and_learns_after_them(self, tmp_path: Path, bf16: bool) -> None:
        callback = PruningCallback(pruning_config())
        outcome = train_with_trl(tmp_path, [callback], max_steps=60, bf16=bf16)
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
        assert "forward" in outcome.model.get_base_model().__dict__  # trl's own forward, which the cuts must survive
        assert sum(outcome.losses[-10:]) < sum(outcome.losses[:10])

    def test_trls_trainer_scores_groups_as_a_plain_trainer_does(self, tmp_path: Path) -> None:
        # One cut after the first step: both trainers have then seen the same sequences.
        config = pruning_config(cuts=1, prune_start=0.0, prune_end=0.05)
        plain, with_trl = PruningCallback(config), PruningCallback(config)
        train(tmp_path, [plain], dataset=rows(BATCH), max_steps=1)
        train_with_trl(tmp_path, [with_trl], dataset=rows(BATCH), max_steps=1)
        assert plain.run is not None
        assert with_trl.run is not None
        for name, importance in plain.run.importance.items():
            torch.testing.assert_close(with_trl.run.importance[name], importance, rtol=1e-4, atol=0.0)

    def test_what_a_trainer_leaves_can_be_saved_as_a_checkpoint(self, tmp_path: Path) -> None:
        callback = PruningCallback(pruning_config())
        outcome = train_with_trl(tmp_path / "run", [callback])
        expected = logits(outcome.model)
        output = save_pruned(callback, outcome.model, tiny_tokenizer(), tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(output)
        torch.testing.assert_close(logits(loaded), expected, rtol=0.0, atol=1e-5)
        assert AutoTokenizer.from_pretrained(output).decode([72, 73]) == tiny_tokenizer().decode([72, 73])

    def test_nothing_can_be_saved_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has not seen any training yet"):
            save_pruned(PruningCallback(), adapted_model(), None, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_holds_something_is_not_replaced(self, tmp_path: Path) -> None:
        callback, outcome = pruned(tmp_path / "run")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="exists and is not empty"):
            save_pruned(callback, outcome.model, None, tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_result_is_replaced_with_overwrite(self, tmp_path: Path) -> None:
        callback, outcome = pruned(tmp_path / "run")
        outcome.model.base_model.model.config._name_or_path = "org/base"
        out = save_pruned(callback, outcome.model, None, tmp_path / "out")
        with pytest.raises(ValueError, match=r"pass --overwrite \(overwrite=True\)"):
            save_pruned(callback, outcome.model, None, out)
        save_pruned(callback, outcome.model, None, out, overwrite=True)
        assert "Pruned from `org/base` with loraprune" in (out / "README.md").read_text()
        assert json.loads((out / "pruning.json").read_text())["base_model"] == "org/base"

    def test_logs_and_history_tell_ratio_and_size_of_every_step(self, tmp_path: Path) -> None:
        class Reader(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if "loss" in logs:
                    logged.append(dict(logs))

        logged: list[dict[str, Any]] = []
        callback = PruningCallback(pruning_config())
        outcome = train(tmp_path, [callback, Reader()])
        assert callback.run is not None
        assert [entry["step"] for entry in callback.history] == list(range(1, STEPS + 1))
        assert [entry["sparsity_ratio"] for entry in logged] == [entry["ratio"] for entry in callback.history]
        assert [entry["loss"] for entry in callback.history] == outcome.losses
        sizes = [entry["base_parameters"] for entry in logged]
        assert sizes[CUT_STEPS[0] - 2] == callback.run.structure.num_parameters
        assert sizes[CUT_STEPS[0] - 1] < sizes[CUT_STEPS[0] - 2]
        assert sizes[-1] == callback.run.num_parameters
        seconds = [entry["seconds"] for entry in callback.history]
        assert seconds == sorted(seconds)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optim": "adafactor"}, r"The state of the optimizer 'adafactor' cannot be cut.*adamw_torch"),
            ({"fp16": True, "use_cpu": False}, r"fp16 training is not supported.*Use bf16"),
        ],
        ids=["optimizer", "fp16"],
    )
    def test_training_that_cuts_would_break_is_refused(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        arguments = TrainingArguments(**arguments_of(tmp_path, **changes))
        callback = PruningCallback(pruning_config())
        with pytest.raises(ValueError, match=message):
            callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=adapted_model())

    @pytest.mark.parametrize("optim", thinned(["adamw_torch", "adagrad", "rmsprop", "sgd"], 2))
    def test_optimizers_whose_state_can_be_cut_go_on_after_the_cuts(self, tmp_path: Path, optim: str) -> None:
        callback, outcome = pruned(tmp_path, optim=optim)
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
        assert len(outcome.losses) == STEPS
        assert torch.isfinite(torch.tensor(outcome.losses)).all()

    @pytest.mark.parametrize("apply", thinned(["slice", "mask"]))
    def test_a_callback_that_has_pruned_a_model_is_refused_for_another(self, tmp_path: Path, apply: str) -> None:
        callback, outcome = pruned(tmp_path, pruning_config(repair="none", apply=apply))
        assert callback.run is not None
        plan = callback.run.plan
        other = outcome.model if apply == "mask" else adapted_model()  # masks have become cuts
        with pytest.raises(ValueError, match=r"not the model that was pruned so far. Make a new PruningCallback"):
            train(tmp_path, [callback], model=other)
        assert callback.run.plan == plan

    def test_training_may_go_on_with_the_model_that_was_pruned(self, tmp_path: Path) -> None:
        callback, outcome = pruned(tmp_path)
        assert callback.run is not None
        plan = callback.run.plan
        again = train(tmp_path, [callback], model=outcome.model)
        assert callback.run.plan == plan
        assert len(again.losses) == STEPS

    def test_bringing_back_the_best_model_is_refused_before_training(self, tmp_path: Path) -> None:
        changes = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
        trainer = Trainer(
            model=adapted_model(),
            args=TrainingArguments(**arguments_of(tmp_path, **changes, load_best_model_at_end=True)),
            train_dataset=rows(),
            eval_dataset=rows(8),
            callbacks=[PruningCallback(pruning_config())],
        )
        with pytest.raises(ValueError, match=r"may bring back an adapter from before a cut.*Switch it off"):
            trainer.train()

    def test_calibration_sequences_that_are_given_replace_the_training_data(self, tmp_path: Path) -> None:
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self) -> Any:
                yield from rows()

        calibration = [torch.arange(12), torch.arange(30, 50)]
        callback = PruningCallback(pruning_config(), calibration=calibration)
        train(tmp_path, [callback], dataset=Stream())
        assert callback.run is not None
        assert callback.run.ratio > 0.4
        with pytest.raises(ValueError, match=r"PruningCallback\(calibration=\[\.\.\.\]\)"):
            train(tmp_path, [PruningCallback(pruning_config())], dataset=Stream())

    def test_the_refit_uses_the_calibration_sequences(self, tmp_path: Path) -> None:
        name = "base_model.model.model.layers.0.mlp.down_proj.base_layer.weight"
        weights = []
        for start in (0, 100):
            callback = PruningCallback(
                pruning_config(criterion="magnitude"), calibration=[torch.arange(start, start + 30)]
            )
            weights.append(train(tmp_path, [callback]).weights[name])
        assert not torch.equal(weights[0], weights[1])

    @pytest.mark.filterwarnings("ignore:Training ended")
    def test_a_run_that_ends_before_its_last_cut_says_so(self, tmp_path: Path) -> None:
        callback = PruningCallback(pruning_config())
        with pytest.warns(UserWarning, match=r"ended at step 3, before 2 of 3 cuts: the ratio reached is 0\.\d+"):
            train(tmp_path, [callback, StopAfter(3)])


class TestCost:
    def test_cuts_free_the_memory_of_weights_adapters_and_optimizer_state(self, tmp_path: Path) -> None:
        def sizes(model: Any, optimizer: Any) -> tuple[int, int]:
            state = raw_optimizer(optimizer).state
            moments = sum(v.numel() for entry in state.values() for v in entry.values() if v.ndim)
            return tensor_bytes(model), moments

        watch = Watch(sizes)
        callback = PruningCallback(pruning_config())
        outcome = train(tmp_path, [callback, watch])
        run = callback.run
        assert run is not None
        # The tensors own exactly the memory that they show: no cut is a view of what was there before.
        for parameter in outcome.model.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.itemsize
        weights_before, moments_before = watch.seen[CUT_STEPS[0] - 1]
        weights_after, moments_after = watch.seen[STEPS]
        removed = run.structure.num_parameters - run.num_parameters
        assert weights_before - weights_after > 4 * removed  # base weights in 32 bits, and columns of the adapter
        trainable = sum(p.numel() for p in outcome.model.parameters() if p.requires_grad)
        assert moments_after == 2 * trainable  # Adam's two, in the shape of what is trained now
        assert moments_before > moments_after

    def test_no_tensor_of_the_old_width_is_left(self, tmp_path: Path) -> None:
        model = adapted_model(intermediate_size=72)  # a width that nothing else here has
        _, outcome = pruned(tmp_path, model=model)
        gc.collect()
        tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        left = [tensor.shape for tensor in tensors if tensor.ndim == 2 and 72 in tensor.shape]  # scores are kept
        assert left == []
        assert outcome.model is model

    @pytest.mark.parametrize("trainer", thinned([train, train_with_trl]))
    @pytest.mark.parametrize("criterion", ["fisher", "lora"])
    def test_after_the_last_cut_no_hook_is_left_on_the_model(
        self, tmp_path: Path, trainer: Any, criterion: str
    ) -> None:
        watch = Watch(lambda model, optimizer: num_hooks(model))
        trainer(tmp_path, [PruningCallback(pruning_config(criterion=criterion)), watch])
        plain = Watch(lambda model, optimizer: num_hooks(model))
        trainer(tmp_path, [plain])
        last = CUT_STEPS[-1]
        after = {step: hooks for step, hooks in watch.seen.items() if step >= last}
        assert after == {step: plain.seen[step] for step in after}
        if criterion == "fisher":
            assert watch.seen[last - 1] > plain.seen[last - 1]

    def test_after_the_last_cut_evidence_is_let_go(self, tmp_path: Path) -> None:
        callback, _ = pruned(tmp_path)
        assert callback.run is not None
        assert callback.run.average == MovingAverage()

    def test_a_callback_leaves_the_global_random_state_alone(self, tmp_path: Path) -> None:
        states = [
            train(tmp_path, callbacks) and torch.get_rng_state()
            for callbacks in ([], [PruningCallback(pruning_config())])
        ]
        assert torch.equal(states[0], states[1])


class TestBatches:
    """How sequences are grouped, and what is recomputed, does not change what is found important."""

    def importance(self, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
        callback, outcome = pruned(folder, pruning_config(repair="none"), **changes)
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
        assert torch.isfinite(torch.tensor(outcome.losses)).all()
        return {**callback.run.importance, "losses": torch.tensor(outcome.losses)}

    def test_gradient_accumulation_gives_the_importance_of_one_large_batch(self, tmp_path: Path) -> None:
        whole = self.importance(tmp_path)
        parts = self.importance(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH)
        for name, values in whole.items():
            torch.testing.assert_close(parts[name], values, rtol=1e-2, atol=1e-7)

    @pytest.mark.parametrize("use_reentrant", thinned([False, True]))
    def test_gradient_checkpointing_gives_the_same_importance(self, tmp_path: Path, use_reentrant: bool) -> None:
        model = adapted_model()
        model.enable_input_require_grads()
        plain = self.importance(tmp_path)
        checkpointed = self.importance(
            tmp_path,
            model=model,
            **{RECOMPUTATION: True, f"{RECOMPUTATION}_kwargs": {"use_reentrant": use_reentrant}},
        )
        for name, values in plain.items():
            torch.testing.assert_close(checkpointed[name], values, rtol=1e-2, atol=1e-7)

    @pytest.mark.parametrize("criterion", thinned(["fisher", "lora"]))
    def test_trl_with_both_makes_every_cut(self, tmp_path: Path, criterion: str) -> None:
        callback = PruningCallback(pruning_config(criterion=criterion))
        outcome = train_with_trl(tmp_path, [callback], gradient_accumulation_steps=2, **{RECOMPUTATION: True})
        assert callback.run is not None
        assert [record.step for record in callback.run.records] == CUT_STEPS
        assert len(outcome.losses) == STEPS

    def test_padded_sequences_of_different_lengths_are_scored(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(pad=True)
        texts = [text[: 4 + 3 * number % 13] for number, text in enumerate(sentences(24))]
        callback = PruningCallback(pruning_config())
        trainer = SFTTrainer(
            model=byte_model(),
            args=SFTConfig(**arguments_of(tmp_path, max_length=LENGTH)),
            train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]}),
            processing_class=tokenizer,
            peft_config=lora_config(),
            callbacks=[callback],
        )
        trainer.train()
        assert callback.run is not None
        assert callback.run.ratio == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("family", thinned(["mistral", "qwen2", "qwen3"]))
def test_every_family_is_pruned_while_it_trains(tmp_path: Path, family: str) -> None:
    callback, outcome = pruned(tmp_path, model=adapted_model(family))
    assert callback.run is not None
    assert callback.run.ratio == pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(logits(outcome.model)).all()


def test_a_callback_without_a_configuration_halves_the_model() -> None:
    assert PruningCallback().config == PruningConfig(ratio=0.5)


def test_a_trainer_that_never_logs_is_pruned_all_the_same(tmp_path: Path) -> None:
    callback = PruningCallback(pruning_config())
    trainer = make_trainer(tmp_path, [callback], logging_strategy="no")
    trainer.train()
    assert callback.run is not None
    assert callback.run.ratio > 0.4
    assert callback.history == []
