from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.checkpoints import VOCABULARY, byte_model, tiny_checkpoint, tiny_tokenizer, write_texts
from tests.finished_run import CONFIG, QUICK
from tests.models import PROJECTIONS, logits_of, token_ids
from tests.recipes.test_mixtures import mixture
from tests.tasks.models import digits, learned_images, tiny_vit
from tests.thinned import thinned
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from loraprune import OneshotConfig, PruneResult, PruningConfig, RunOptions, keep_zeros_, oneshot, prune, recover
from loraprune.pruning.errors import InterruptedRunError
from loraprune.tasks.options import LoraOptions

IDS = token_ids(2, 11, vocabulary=VOCABULARY)
TRAINING = {**QUICK, "learning_rate": 1e-2}


def made_sparse(model: Any, output: Path | None = None, sparsity: str = "2:4", **given: Any) -> PreTrainedModel:
    """A checkpoint or a model with zeros, as ``loraprune oneshot`` leaves it."""
    return oneshot(
        model,
        config=OneshotConfig(sparsity=sparsity, criterion="magnitude"),
        options=RunOptions(output=output, eval_sequences=0, report=False),
        **given,
    ).model


@pytest.fixture(scope="module")
def sparse(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2:4 Llama; no test changes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sparse"
    made_sparse(checkpoint, folder)
    return folder


class Trained(TrainerCallback):
    """Remembers what the model computes at the end of training, with the adapter not merged."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        was_training = model.training
        self.logits = logits_of(model.eval(), IDS)
        model.train(was_training)


def quick(model: Any, data: Any, *, output: Path | None = None, **changes: Any) -> PruneResult:
    options = RunOptions(**{"output": output, **changes.pop("options", {})})
    training = {**TRAINING, **changes.pop("training", {})}
    return recover(model, data, training=training, options=options, **changes)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def recovered(sparse: Path, data: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    """A run with everything that can be asked for; no test changes it."""
    return quick(
        sparse,
        data,
        output=tmp_path_factory.mktemp("recovered") / "out",
        callbacks=[trained],
        options={"save_adapter": True, "prompt": "the old river", "command": "loraprune recover tiny-sparse"},
    )


def record_of(result: PruneResult) -> dict[str, Any]:
    assert result.output is not None
    record: dict[str, Any] = json.loads((result.output / "pruning.json").read_text())
    return record


def losses(result: PruneResult) -> list[float]:
    return [point["loss"] for point in result.metrics["history"]]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Matrices of the blocks, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if "layer" in name and p.dim() > 1}


def check_zeros_kept(before: nn.Module, after: nn.Module) -> None:
    """Zeros are where they were, and nowhere else; what LoRA adapts has changed."""
    old, new = weights_of(before), weights_of(after)
    assert old.keys() == new.keys()
    changed = 0
    for name, weight in old.items():
        assert torch.equal(new[name] == 0, weight == 0), name
        changed += not torch.equal(new[name], weight)
    assert changed > 0


class TestSparseModel:
    def test_zeros_stay_where_they_are_and_all_other_weights_change(self, recovered: PruneResult, sparse: Path) -> None:
        before = AutoModelForCausalLM.from_pretrained(sparse)
        after = AutoModelForCausalLM.from_pretrained(recovered.output)
        check_zeros_kept(before, after)
        for name, weight in weights_of(before).items():
            fours = weights_of(after)[name].unflatten(1, (-1, 4))
            assert bool(((fours != 0).sum(-1) == 2).all()), name
            assert bool((weights_of(after)[name] != weight)[weight != 0].float().mean() > 0.99), name

    def test_merging_loses_nothing(self, recovered: PruneResult, trained: Trained) -> None:
        assert type(recovered.model).__name__ == "LlamaForCausalLM"
        torch.testing.assert_close(logits_of(recovered.model, IDS), trained.logits, atol=1e-4, rtol=1e-4)
        loaded = AutoModelForCausalLM.from_pretrained(recovered.output)
        assert torch.equal(logits_of(loaded, IDS), logits_of(recovered.model, IDS))

    def test_the_model_learns(self, recovered: PruneResult) -> None:
        metrics = recovered.metrics
        assert metrics["pruned"]["perplexity"] < metrics["dense"]["perplexity"]
        assert losses(recovered)[-1] < losses(recovered)[0]

    def test_the_record_tells_zeros_and_what_the_base_was(self, recovered: PruneResult, sparse: Path) -> None:
        record = record_of(recovered)
        before, after = record["metrics"]["sparsity"]["before"], record["metrics"]["sparsity"]["after"]
        assert before == after
        assert before["share"] == 0.5
        assert set(before["kinds"].values()) == {0.5}
        model = AutoModelForCausalLM.from_pretrained(sparse)
        nonzero = sum(int(torch.count_nonzero(p)) for p in model.parameters())
        assert record["metrics"]["dense"]["nonzero"] == record["metrics"]["pruned"]["nonzero"] == nonzero
        assert "pruning" not in record["metrics"]
        assert "latency_ms" not in record["metrics"]["pruned"]
        assert record["settings"]["recovery"] == {"keep_zeros": True, "max_skipped_steps": 5}
        assert record["settings"]["lora"]["r"] == 8
        base = record["base_pruning"]
        assert (base["recipe"], base["method"], base["pattern"], base["sparsity"]) == (
            "oneshot",
            "magnitude",
            "2:4",
            0.5,
        )

    def test_the_history_of_a_checkpoint_grows(self, recovered: PruneResult, data: Path, tmp_path: Path) -> None:
        again = record_of(quick(recovered.output, data, output=tmp_path / "out", options={"report": False}))
        assert again["base_pruning"]["recipe"] == "recover"
        assert again["base_pruning"]["sparsity"] == 0.5
        assert again["base_pruning"]["base_pruning"]["pattern"] == "2:4"
        assert "(2:4 sparse by `magnitude`)" in (tmp_path / "out" / "README.md").read_text()

    def test_card_and_report_speak_of_recovery(self, recovered: PruneResult) -> None:
        assert recovered.output is not None
        card = (recovered.output / "README.md").read_text()
        assert "# tiny-sparse, recovered" in card
        assert "- recovered\n" in card
        assert "| | before | after |" in card
        assert "A copy of `tiny-sparse` (2:4 sparse by `magnitude`): LoRA tuned it" in card
        assert "(50.00%)" in card
        page = (recovered.output / "report.html").read_text()
        for text in (card, page):
            assert "dense" not in text
            assert "pruned" not in text
        report = recovered.report
        assert report.title == "tiny-sparse, recovered"
        assert [row.label for row in report.rows][:2] == ["Parameters", "Weights that are not zero"]
        assert report.completions[0].prompt == "the old river"
        assert "still are" in page
        assert "Share removed" not in page
        assert "0.0 % removed" not in page

    def test_the_adapter_alone_is_saved_on_request(self, recovered: PruneResult) -> None:
        assert recovered.output is not None
        names = {path.name for path in (recovered.output / "adapter").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert "refitted_base_weights.safetensors" not in names
        assert not (recovered.output / "plan.json").exists()

    def test_unstructured_zeros_stay(self, checkpoint: Path, data: Path) -> None:
        base = made_sparse(checkpoint, sparsity="0.6")
        before = {name: weight.clone() for name, weight in weights_of(base).items()}
        result = quick(base, data, tokenizer=tiny_tokenizer())
        assert all(torch.equal(weight == 0, before[name] == 0) for name, weight in weights_of(result.model).items())
        assert result.metrics["sparsity"]["after"]["share"] == pytest.approx(0.6, abs=0.01)

    def test_zeros_stay_zero_in_16_bits(self, tmp_path: Path, data: Path) -> None:
        base = made_sparse(tiny_checkpoint(tmp_path / "half", dtype=torch.bfloat16), tmp_path / "sparse")
        before = weights_of(base)
        result = quick(tmp_path / "sparse", data, output=tmp_path / "out")
        after = AutoModelForCausalLM.from_pretrained(result.output)
        assert after.dtype == torch.bfloat16
        assert all(bool((weight[before[name] == 0] == 0).all()) for name, weight in weights_of(after).items())
        sparsity = result.metrics["sparsity"]
        assert sparsity["after"]["share"] >= sparsity["before"]["share"] == 0.5

    @pytest.mark.parametrize("experts", [False, True])
    def test_zeros_of_experts_stay(self, data: Path, experts: bool) -> None:
        base = made_sparse(mixture("mixtral"), tokenizer=tiny_tokenizer())
        before = {name: weight.clone() for name, weight in weights_of(base).items()}
        stacks = [name for name, weight in before.items() if weight.dim() == 3]
        assert stacks
        result = quick(base, data, tokenizer=tiny_tokenizer(), lora=LoraOptions(experts=experts))
        after = weights_of(result.model)
        assert all(torch.equal(after[name] == 0, weight == 0) for name, weight in before.items())
        assert all(torch.equal(after[name], before[name]) is not experts for name in stacks)
        sparsity = result.metrics["sparsity"]
        assert sparsity["after"] == sparsity["before"]

    @pytest.mark.full
    def test_an_image_classifier_recovers_and_its_own_layer_is_trained(self, tmp_path: Path) -> None:
        pytest.importorskip("sklearn")
        train, test = digits()
        learned_images(tiny_vit(), train).save_pretrained(tmp_path / "vit")
        made_sparse(tmp_path / "vit", tmp_path / "sparse", "1:4")
        training = {"max_steps": 20, "per_device_train_batch_size": 32, "learning_rate": 1e-2, "bf16": False}
        options = RunOptions(output=tmp_path / "out", eval_data=test)
        result = recover(tmp_path / "sparse", train, training=training, options=options)
        before = AutoModelForImageClassification.from_pretrained(tmp_path / "sparse")
        after = AutoModelForImageClassification.from_pretrained(result.output)
        check_zeros_kept(before, after)
        assert not torch.equal(before.classifier.weight, after.classifier.weight)
        assert result.metrics["pruned"]["accuracy"] > result.metrics["dense"]["accuracy"]
        assert result.metrics["sparsity"]["after"]["share"] == 0.25


class TestModelWithoutZeros:
    def test_it_is_plain_lora_tuning(self, checkpoint: Path, data: Path) -> None:
        result = quick(checkpoint, data)
        plain = prune(
            checkpoint,
            data,
            PruningConfig(ratio=0.0, repair="none"),
            training=TRAINING,
            options=RunOptions(latency=False),
        )
        assert losses(result) == losses(plain)
        assert torch.equal(logits_of(result.model, IDS), logits_of(plain.model, IDS))
        assert "sparsity" not in result.metrics
        assert [row.label for row in result.report.rows][:2] == ["Parameters", "File size"]

    @pytest.mark.parametrize("allocation", thinned(["balanced", "global"]))
    def test_a_structurally_pruned_checkpoint_keeps_its_shapes(
        self, checkpoint: Path, data: Path, tmp_path: Path, allocation: str
    ) -> None:
        config = PruningConfig(ratio=0.5, calibration_sequences=8, allocation=allocation)
        options = RunOptions(output=tmp_path / "pruned", latency=False, report=False)
        pruned = prune(checkpoint, data, config, training=QUICK, options=options)
        result = quick(tmp_path / "pruned", data, output=tmp_path / "out")
        after = AutoModelForCausalLM.from_pretrained(result.output)
        assert type(after) is type(pruned.model)
        shapes = {name: p.shape for name, p in pruned.model.named_parameters()}
        assert {name: p.shape for name, p in after.named_parameters()} == shapes
        assert torch.equal(logits_of(after, IDS), logits_of(result.model, IDS))
        assert not torch.equal(logits_of(after, IDS), logits_of(pruned.model, IDS))
        assert result.metrics["dense"]["perplexity"] == pytest.approx(pruned.metrics["pruned"]["perplexity"], rel=1e-4)
        base = record_of(result)["base_pruning"]
        assert (base["recipe"], base["method"]) == ("prune", "fisher")
        assert base["ratio"] == pytest.approx(0.5, abs=0.01)
        assert (
            "`pruned` (50 % of the prunable parameters removed by `fisher`)"
            in (tmp_path / "out" / "README.md").read_text()
        )


class TestZerosThatAreGivenUp:
    def test_the_user_is_warned_and_the_merge_fills_them(
        self, sparse: Path, data: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "loraprune"):
            result = quick(sparse, data, keep_zeros=False)
        assert "50 % of the weights of the blocks' linear layers are zero before this run, and merging" in caplog.text
        assert any("keep_zeros" in note for note in result.report.notes)
        sparsity = result.metrics["sparsity"]
        assert (sparsity["before"]["share"], sparsity["after"]["share"]) == (0.5, 0.0)
        assert result.metrics["pruned"]["nonzero"] > result.metrics["dense"]["nonzero"]

    @pytest.mark.parametrize("refit", [True, False])
    def test_pruning_a_sparse_model_says_who_keeps_them(
        self, sparse: Path, data: Path, caplog: pytest.LogCaptureFixture, refit: bool
    ) -> None:
        config = PruningConfig(ratio=0.5, calibration_sequences=8, repair="refit" if refit else "none")
        with caplog.at_level(logging.WARNING, "loraprune"):
            result = prune(sparse, data, config, training=QUICK, options=RunOptions(latency=False))
        assert ("the repair and the merge of the LoRA adapter fill them" in caplog.text) is refit
        assert "`loraprune recover` tunes a sparse model and keeps its zeros." in caplog.text
        assert any("loraprune recover" in note for note in result.report.notes)

    def test_pruning_a_dense_model_says_nothing_of_zeros(
        self, checkpoint: Path, data: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "loraprune"):
            prune(checkpoint, data, CONFIG, training=QUICK, options=RunOptions(latency=False))
        assert "zero" not in caplog.text


class TestRefusals:
    """One line, before any training, and nothing is left on the disk."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_dora": True}, "DoraLinearVariant cannot keep zeros. Use plain LoRA"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' rewrites the base weights"),
            (
                {"modules_to_save": ["down_proj"]},
                "modules_to_save='down_proj' trains model.layers.0.mlp.down_proj itself",
            ),
            ({"modules_to_save": ["mlp"]}, "modules_to_save='mlp' trains model.layers.0.mlp.gate_proj itself"),
        ],
        ids=str,
    )
    def test_what_cannot_keep_zeros(
        self, sparse: Path, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        targets = [name for name in PROJECTIONS if name.endswith(("q_proj", "v_proj"))]
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **changes)
        with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
            quick(sparse, data, output=tmp_path / "out", lora=lora)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_layers_outside_the_blocks_may_be_trained_as_a_whole(self, sparse: Path, data: Path) -> None:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=list(PROJECTIONS), modules_to_save=["lm_head"])
        result = quick(sparse, data, lora=lora)
        before = AutoModelForCausalLM.from_pretrained(sparse)
        check_zeros_kept(before, result.model)
        assert not torch.equal(before.lm_head.weight, result.model.lm_head.weight)

    def test_any_adapter_goes_where_zeros_are_given_up(self, sparse: Path, data: Path) -> None:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["down_proj"])
        result = quick(sparse, data, lora=lora, keep_zeros=False)
        assert result.metrics["sparsity"]["after"]["kinds"]["self_attn.q_proj"] == 0.0

    def test_a_target_of_parameters(self, sparse: Path, data: Path) -> None:
        with pytest.raises(ValueError, match="recovery removes nothing"):
            quick(sparse, data, options={"target_params": 20_000})


class CtrlC(TrainerCallback):
    """Sends this process what Ctrl-C sends, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class TestInterruption:
    @pytest.mark.parametrize("base", thinned(["sparse", "checkpoint"]))
    def test_a_resumed_run_ends_as_an_uninterrupted_one(
        self, base: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        model = request.getfixturevalue(base)
        expected = quick(model, data, output=tmp_path / "whole")
        with pytest.raises(InterruptedRunError, match="Stopped at step 3 of 6"):
            quick(model, data, output=tmp_path / "out", callbacks=[CtrlC(3)])
        result = quick(model, data, output=tmp_path / "out", options={"resume": True})
        assert losses(result) == losses(expected)
        assert torch.equal(logits_of(result.model, IDS), logits_of(expected.model, IDS))
        assert result.metrics.get("sparsity") == expected.metrics.get("sparsity")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]

    def test_a_run_that_was_stopped_after_its_last_step_keeps_zeros_too(
        self, sparse: Path, data: Path, tmp_path: Path
    ) -> None:
        class InMeasuring(TrainerCallback):
            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                raise KeyboardInterrupt

        output = tmp_path / "out"
        with pytest.raises(InterruptedRunError):
            quick(sparse, data, output=output, training={"save_steps": 6}, callbacks=[InMeasuring()])
        result = quick(sparse, data, output=output, training={"save_steps": 6}, options={"resume": True})
        check_zeros_kept(AutoModelForCausalLM.from_pretrained(sparse), result.model)

    @pytest.mark.parametrize("kept", thinned([True, False]))
    def test_zeros_are_treated_as_when_the_run_began(
        self, sparse: Path, data: Path, tmp_path: Path, kept: bool
    ) -> None:
        with pytest.raises(InterruptedRunError):
            quick(sparse, data, output=tmp_path / "out", callbacks=[CtrlC(2)], keep_zeros=kept)
        remedy = "--keep-zeros" if kept else "--no-keep-zeros"
        with pytest.raises(ValueError, match=rf"Resume it with {remedy}, or start anew with --overwrite"):
            quick(sparse, data, output=tmp_path / "out", options={"resume": True}, keep_zeros=not kept)
        result = quick(sparse, data, output=tmp_path / "out", options={"resume": True}, keep_zeros=kept)
        assert (result.metrics["sparsity"]["after"]["share"] == 0.5) is kept

    def test_a_run_that_prunes_does_not_go_on_as_one_that_recovers(
        self, sparse: Path, data: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InterruptedRunError):
            quick(sparse, data, output=tmp_path / "out", callbacks=[CtrlC(2)])
        options = RunOptions(output=tmp_path / "out", resume=True, latency=False)
        with pytest.raises(ValueError, match="was started with other pruning options"):
            prune(sparse, data, CONFIG, training=TRAINING, options=options)


def test_zeros_stay_in_a_trainer_of_the_users_own(sparse: Path, tmp_path: Path) -> None:
    """As the documentation shows it."""
    model = AutoModelForCausalLM.from_pretrained(sparse)
    before = AutoModelForCausalLM.from_pretrained(sparse)
    rows = [{"input_ids": row, "labels": row} for row in token_ids(16, 11, vocabulary=VOCABULARY)]
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=6, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    keep_zeros_(model)
    Trainer(model, arguments, train_dataset=rows).train()
    unmerged = logits_of(model.eval(), IDS)
    merged = model.merge_and_unload()
    check_zeros_kept(before, merged)
    torch.testing.assert_close(logits_of(merged, IDS), unmerged, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "out")
    check_zeros_kept(before, AutoModelForCausalLM.from_pretrained(tmp_path / "out"))


def test_a_checkpoint_of_somebody_else_has_no_history(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data.jsonl")
    folder = tiny_checkpoint(tmp_path / "model")
    for content in (None, "no json", "[1]", '{"settings": 3, "metrics": {"pruning": "half"}}'):
        if content is not None:
            (folder / "pruning.json").write_text(content)
        result = quick(folder, data, output=tmp_path / "out", options={"overwrite": True, "eval_sequences": 0})
        assert not record_of(result).get("base_pruning")


def test_a_model_in_memory_needs_no_name(data: Path) -> None:
    result = quick(byte_model(), data, tokenizer=tiny_tokenizer())
    assert result.report.title == "model, recovered"
