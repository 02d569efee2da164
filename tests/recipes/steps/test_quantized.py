from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import VOCABULARY, tiny_checkpoint
from tests.finished_run import QUICK
from tests.models import logits_of, token_ids
from tests.quantized_models import WIDTHS, need, quantized
from tests.thinned import thinned
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, TrainerCallback

from loraprune import OneshotConfig, PruneResult, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.layers.quantized import is_quantized_model, quantized_layers, weight_rows
from loraprune.pruning.errors import InterruptedRunError
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

KINDS = ("bnb-8bit", "bnb-4bit", "torchao-int8")
IDS = token_ids(2, 11, vocabulary=VOCABULARY)
CONFIG = PruningConfig(ratio=0.5, calibration_sequences=8)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads of 64 features."""
    return tiny_checkpoint(tmp_path_factory.mktemp("wide") / "llama", **WIDTHS)


@pytest.fixture(params=thinned(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


def quick(model: Any, data: Any, config: PruningConfig = CONFIG, **changes: Any) -> PruneResult:
    options = {"latency": False, "eval_sequences": 4, **changes.pop("options", {})}
    training = {**QUICK, **changes.pop("training", {})}
    return prune(model, data, config, training=training, options=RunOptions(**options), **changes)


def cut_to(result: PruneResult, folder: Path) -> Any:
    """The original in 32 bits, cut to the plan of a result."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    structure = describe(plain)
    slice_(plain, structure, Plan.full(structure), result.plan)
    return plain


STILL = {"learning_rate": 0.0}
"""Nothing is learned, so that B stays zero and the adapter adds nothing."""


class TestResult:
    @pytest.mark.parametrize("criterion", thinned(["fisher", "lora"]))
    def test_it_is_a_plain_model_half_the_size(
        self, tmp_path: Path, wide: Path, data: Path, kind: str, criterion: str
    ) -> None:
        config = PruningConfig(ratio=0.5, criterion=criterion, calibration_sequences=8)
        result = quick(wide, data, config, options={"output": tmp_path / "out", "quantization": kind})
        assert type(result.model) is LlamaForCausalLM
        assert result.plan.ratio(result.structure) == pytest.approx(0.5, abs=0.02)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert not is_quantized_model(loaded)
        assert not hasattr(loaded.config, "quantization_config")
        assert torch.equal(logits_of(loaded, IDS), logits_of(result.model, IDS))
        assert result.metrics["pruned"]["parameters"] == loaded.num_parameters()

    def test_without_refit_it_has_the_weights_of_the_checkpoint_and_no_error_of_quantization(
        self, wide: Path, data: Path, kind: str
    ) -> None:
        result = quick(
            wide,
            data,
            PruningConfig(ratio=0.5, repair="none"),
            training=STILL,
            options={"quantization": kind},
        )
        expected = cut_to(result, wide)
        for name, value in expected.state_dict().items():
            assert torch.equal(result.model.state_dict()[name], value), name

    def test_what_was_learned_is_added_to_the_weights_of_the_checkpoint(
        self, tmp_path: Path, wide: Path, data: Path, kind: str
    ) -> None:
        from peft import PeftModel

        options = {"quantization": kind, "output": tmp_path / "out", "save_adapter": True}
        result = quick(
            wide, data, PruningConfig(ratio=0.5, repair="none"), training={"learning_rate": 1e-2}, options=options
        )
        plain = cut_to(result, wide)
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        expected = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").merge_and_unload()
        found = result.model.state_dict()
        assert any((found[name] - value).abs().max() > 1e-3 for name, value in before.items())
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)

    def test_a_refit_starts_from_the_weights_of_the_checkpoint(self, wide: Path, data: Path, kind: str) -> None:
        result = quick(
            wide,
            data,
            PruningConfig(ratio=0.5, damping=1e9, calibration_sequences=8),
            training=STILL,
            options={"quantization": kind},
        )
        # So strong a ridge leaves the columns that stay as they were.
        expected = cut_to(result, wide)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(result.model.state_dict()[name], value, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        "config",
        thinned(
            [
                PruningConfig(ratio=0.4, criterion="compresso", repair="none"),
                PruningConfig(ratio=0.5, criterion="random", dimensions=("hidden",)),
                PruningConfig(ratio=0.5, criterion="random", dimensions=("blocks",)),
                PruningConfig(ratio=0.5, criterion="random", allocation="global", repair="none"),
                PruningConfig(ratio=0.5, criterion="random", apply="mask", repair="none"),
            ],
            2,
        ),
        ids=["compresso", "hidden", "blocks", "global", "mask"],
    )
    def test_other_ways_to_prune_a_quantized_base_end_as_those_of_the_plain_base(
        self, wide: Path, data: Path, config: PruningConfig
    ) -> None:
        need("bnb-8bit")
        plain = quick(wide, data, config, training=STILL)
        result = quick(wide, data, config, training=STILL, options={"quantization": "bnb-8bit"})
        assert result.metrics["pruned"]["parameters"] == plain.metrics["pruned"]["parameters"]
        assert result.plan == plain.plan
        for name, value in plain.model.state_dict().items():
            found = result.model.state_dict()[name]
            # Only gates that are learnt depend on the base.
            assert (found - value).norm() <= (0.02 if config.criterion == "compresso" else 0.0) * value.norm(), name

    def test_the_record_and_the_report_say_that_the_base_was_quantized(
        self, tmp_path: Path, wide: Path, data: Path
    ) -> None:
        need("bnb-8bit")
        result = quick(wide, data, options={"output": tmp_path / "out", "quantization": "bnb-8bit"})
        assert any(
            "quantized (bnb-8bit)" in note and "checkpoint's own weights" in note for note in result.report.notes
        )
        assert '"quantization": "bnb-8bit"' in (tmp_path / "out" / "pruning.json").read_text()

    def test_a_result_that_does_not_fit_where_the_run_computes_is_saved_and_not_measured(
        self, tmp_path: Path, wide: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        need("bnb-8bit")
        monkeypatch.setattr("loraprune.recipes.prune.is_measurable", lambda prepared, merged: False)
        options = {"quantization": "bnb-8bit", "output": tmp_path / "out", "latency": True}
        result = quick(wide, data, options=options)
        assert "perplexity" in result.metrics["dense"]
        assert result.metrics["pruned"].keys() == {"parameters", "bytes"}
        assert "parameters" in (tmp_path / "out" / "README.md").read_text()
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == result.model.num_parameters()


class TestKeepingItQuantized:
    def test_the_result_is_quantized_once_and_loads_in_plain_transformers(
        self, tmp_path: Path, wide: Path, data: Path, kind: str
    ) -> None:
        options = {"quantization": kind, "output": tmp_path / "out", "keep_quantized": True}
        kept = quick(wide, data, options=options)
        plain = quick(wide, data, options={"quantization": kind, "output": tmp_path / "plain"})
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        expected = quantized(tmp_path / "plain", kind)
        found = dict(quantized_layers(loaded))
        assert found.keys() == dict(quantized_layers(expected)).keys() != set()
        for name, layer in quantized_layers(expected):
            assert torch.equal(weight_rows(found[name]), weight_rows(layer)), name
        assert kept.plan == plain.plan
        assert "quantized in the same way" in kept.report.notes[0]


class TestModelInMemory:
    def test_it_is_merged_from_its_own_weights_and_the_report_says_so(self, wide: Path, data: Path, kind: str) -> None:
        model = quantized(wide, kind)
        before = {name: weight_rows(layer) for name, layer in quantized_layers(model)}
        tokenizer = AutoTokenizer.from_pretrained(wide)
        config = PruningConfig(ratio=0.5, repair="none", dimensions=("heads",))
        result = quick(model, data, config, training=STILL, tokenizer=tokenizer)
        assert not is_quantized_model(result.model)
        assert any("has the error of quantization" in note for note in result.report.notes)
        name = "model.layers.0.mlp.up_proj"  # no part of a head
        assert torch.equal(result.model.get_submodule(name).weight, before[name])


class CtrlC(TrainerCallback):
    """Sends this process what Ctrl-C sends, in the middle of a step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == 4:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore:Training ended")
class TestInterruption:
    # Without refit, 4 bits are what depends on the cuts on the way.
    @pytest.mark.parametrize(("kind", "refit"), thinned([("bnb-4bit", False), ("bnb-4bit", True), ("bnb-8bit", True)]))
    def test_a_resumed_run_ends_as_an_uninterrupted_one(
        self, tmp_path: Path, wide: Path, data: Path, kind: str, refit: bool
    ) -> None:
        need(kind)
        config = PruningConfig(
            ratio=0.5, repair="refit" if refit else "none", calibration_sequences=8, cuts=4, prune_end=0.7
        )
        training = {"max_steps": 10}
        expected = quick(
            wide, data, config, training=training, options={"output": tmp_path / "whole", "quantization": kind}
        )
        options = {"output": tmp_path / "out", "quantization": kind}
        with pytest.raises(InterruptedRunError):
            quick(wide, data, config, training=training, options=options, callbacks=[CtrlC()])
        with pytest.raises(ValueError, match=f"started with quantization {kind}, and not None"):
            quick(wide, data, config, training=training, options={"output": tmp_path / "out", "resume": True})
        result = quick(wide, data, config, training=training, options={**options, "resume": True})
        assert result.plan == expected.plan
        losses = [[point["loss"] for point in each.metrics["history"]] for each in (result, expected)]
        assert losses[0] == losses[1]
        assert torch.equal(logits_of(result.model, IDS), logits_of(expected.model, IDS))


class TestRefusals:
    def test_unknown_quantizations(self) -> None:
        with pytest.raises(ValueError, match=r"quantization is 'int3'; choose one of bnb-8bit, bnb-4bit, torchao-int8"):
            RunOptions(quantization="int3")

    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("loraprune.options.precision.find_spec", lambda package: None)
        with pytest.raises(ValueError, match=r'needs bitsandbytes, .*pip install "loraprune\[quantization\]"'):
            RunOptions(quantization="bnb-4bit")

    def test_a_quantization_of_a_model_that_is_loaded_already(self, wide: Path, data: Path) -> None:
        need("bnb-8bit")
        model = AutoModelForCausalLM.from_pretrained(wide)
        with pytest.raises(ValueError, match="quantize it as you load it"):
            quick(model, data, options={"quantization": "bnb-8bit"})

    def test_keeping_a_quantization_that_is_not_there(self, wide: Path, data: Path) -> None:
        with pytest.raises(ValueError, match="needs a quantized base"):
            quick(wide, data, options={"keep_quantized": True})

    def test_runs_that_read_single_weights(self, wide: Path, data: Path) -> None:
        need("bnb-8bit")
        options = RunOptions(quantization="bnb-8bit")
        with pytest.raises(ValueError, match="recover needs weights in 16 or 32 bits"):
            recover(wide, data, options=options)
        with pytest.raises(ValueError, match="Pruning without training needs weights"):
            oneshot(wide, data, OneshotConfig(ratio=0.5), options=options)

    def test_a_checkpoint_that_is_quantized_already(self, tmp_path: Path, wide: Path, data: Path) -> None:
        quantized(wide, "bnb-8bit").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"is quantized.* Name the original checkpoint.*--load-in-8bit"):
            quick(tmp_path, data)
