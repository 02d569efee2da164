from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import byte_model, tiny_checkpoint, tiny_tokenizer, write_jsonl, write_texts
from tests.models import PROJECTIONS
from tests.pruning.criteria import STRUCTURED_METHODS
from tests.recipes.test_mixtures import mixture
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import loraprune
from loraprune import OneshotConfig, OneshotResult, RunOptions, oneshot
from loraprune.pruning.errors import InterruptedRunError
from loraprune.record.run_record import RunRecord
from loraprune.sparsity.configs import ZEROING_METHODS
from loraprune.surgery.repairs import REPAIRS

QUICK: dict[str, Any] = {"calibration_sequences": 8, "max_length": 32}


def run(model: Any, data: Any, *, tokenizer: Any = None, progress: Any = None, **values: Any) -> OneshotResult:
    """A quick run; values that are options of every run are told apart from those of this recipe by their names."""
    fields = RunOptions.__dataclass_fields__
    options = {"latency": False, "eval_sequences": 4, **{name: values[name] for name in values if name in fields}}
    config = OneshotConfig(**{**QUICK, **{name: value for name, value in values.items() if name not in fields}})
    hears = {} if progress is None else {"progress": progress}
    return oneshot(model, data, config, tokenizer=tokenizer, options=RunOptions(**options), **hears)


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is made sparse in a Llama."""
    return {name: value for name, value in model.state_dict().items() if name.split(".")[-2] in PROJECTIONS}


def same(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("method", [name for name in STRUCTURED_METHODS if name != "position"])  # of whole blocks
@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
def test_every_structured_method_reaches_the_ratio(method: str, allocation: str, checkpoint: Path, data: Path) -> None:
    result = run(checkpoint, data, criterion=method, ratio=0.5, allocation=allocation)
    pruning = result.metrics["pruning"]
    one_head = 1 / (2 * 4 * 3)
    assert pruning["ratio"] == pytest.approx(0.5, abs=one_head)
    assert result.model.num_parameters() == pruning["parameters"] == result.metrics["pruned"]["parameters"]
    assert result.plan.ratio(result.structure) == pruning["ratio"]
    assert result.matrices == ()


@pytest.mark.parametrize("method", ZEROING_METHODS)
@pytest.mark.parametrize(("sparsity", "size", "zeros"), [("0.5", None, None), ("2:4", 4, 2), ("4:8", 8, 4)])
def test_every_sparse_method_makes_its_zeros(
    method: str, sparsity: str, size: int | None, zeros: int | None, checkpoint: Path, data: Path
) -> None:
    result = run(checkpoint, data, criterion=method, sparsity=sparsity)
    found = matrices(result.model)
    assert {f"{matrix.name}.weight" for matrix in result.matrices} == found.keys()
    for matrix in result.matrices:
        weight = found[f"{matrix.name}.weight"]
        assert matrix.zeros == int((weight == 0).sum())
        assert matrix.sparsity == pytest.approx(0.5, abs=1 / weight.numel())
        if size is not None:
            assert bool(((weight.view(len(weight), -1, size) == 0).sum(-1) == zeros).all())
    assert result.plan == type(result.plan).full(result.structure)


def test_updates_cost_less_than_zeros_alone(checkpoint: Path, data: Path) -> None:
    """The same mask, with and without SparseGPT's updates, in the output of the last matrix of the first block."""
    dense = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.tensor([tiny_tokenizer()("the old river runs past the mill and over stones")["input_ids"]])
    with torch.no_grad():
        expected = dense(ids).logits
        distances = {
            method: float((run(checkpoint, data, criterion=method, sparsity=0.5).model(ids).logits - expected).norm())
            for method in ("magnitude", "sparsegpt")
        }
    assert distances["sparsegpt"] < distances["magnitude"]


class TestSeed:
    @pytest.mark.parametrize("values", [{"sparsity": 0.5}, {"ratio": 0.5}], ids=["sparse", "structured"])
    def test_the_same_seed_gives_the_same_weights_and_another_one_looks_at_other_rows(
        self, values: dict[str, Any], checkpoint: Path, data: Path
    ) -> None:
        results = []
        for state, seed in ((1, 5), (2, 5), (3, 6)):
            torch.manual_seed(state)
            results.append(run(checkpoint, data, seed=seed, calibration_sequences=3, eval_data=str(data), **values))
        first, again, other = results
        assert same(first.model, again.model)
        assert first.metrics["pruned"]["perplexity"] == again.metrics["pruned"]["perplexity"]
        assert first.metrics["dense"]["perplexity"] == other.metrics["dense"]["perplexity"]
        assert not same(first.model, other.model)

    @pytest.mark.parametrize(
        "values",
        [
            {"sparsity": "2:4"},
            {"criterion": "wanda", "sparsity": 0.5},
            {"ratio": 0.5},
            {"ratio": 0.5, "repair": "bias"},
        ],
        ids=str,
    )
    def test_offload_changes_nothing_where_there_is_no_accelerator(
        self, values: dict[str, Any], checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("recipes.steps.check_oneshot", "checkpoint.source"):
            monkeypatch.setattr(f"loraprune.{module}.default_device", lambda: torch.device("cpu"))
        plain, offloaded = (run(checkpoint, data, offload=offload, **values) for offload in (False, True))
        assert same(plain.model, offloaded.model)
        assert plain.metrics["pruned"]["perplexity"] == offloaded.metrics["pruned"]["perplexity"]


class TestModel:
    def test_a_loaded_model_is_used_up_and_nothing_is_written(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        model = byte_model()
        result = run(model, data, tokenizer=tiny_tokenizer(), sparsity="2:4")
        assert result.model is model
        assert result.output is None
        assert result.tokenizer is not None
        assert list(tmp_path.iterdir()) == []

    def test_it_goes_as_a_folder_does(self, checkpoint: Path, data: Path) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
        from_memory = run(loaded, data, tokenizer=tiny_tokenizer(), sparsity=0.5)
        assert same(from_memory.model, run(checkpoint, data, sparsity=0.5).model)

    def test_rows_may_be_a_loaded_data_set(self, checkpoint: Path, data: Path) -> None:
        from datasets import load_dataset

        rows = load_dataset("json", data_files=str(data), split="train")
        assert same(run(checkpoint, rows, ratio=0.5).model, run(checkpoint, data, ratio=0.5).model)

    @pytest.mark.parametrize(("sparsity", "method"), [("2:4", "sparsegpt"), ("0.5", "wanda"), ("0.5", "magnitude")])
    def test_a_checkpoint_of_16_bits_stays_one_and_keeps_its_zeros(
        self, sparsity: str, method: str, data: Path, tmp_path: Path
    ) -> None:
        source = tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
        result = run(source, data, criterion=method, sparsity=sparsity, output=tmp_path / "out")
        saved = load_file(tmp_path / "out" / "model.safetensors")
        assert {value.dtype for value in saved.values()} == {torch.bfloat16}
        for matrix in result.matrices:
            assert int((saved[f"{matrix.name}.weight"] == 0).sum()) == matrix.zeros
        assert (tmp_path / "out" / "model.safetensors").stat().st_size < 1.2 * result.metrics["pruned"]["bytes"]

    def test_a_cut_checkpoint_of_16_bits_stays_one(self, data: Path, tmp_path: Path) -> None:
        source = tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
        assert run(source, data, ratio=0.5).model.dtype == torch.bfloat16

    def test_widths_that_differ_load_through_this_package(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        result = run(checkpoint, data, criterion="fisher", ratio=0.4, allocation="global", output=tmp_path / "out")
        widths = result.metrics["pruning"]["widths"]["channels"]
        assert len(set(widths)) > 1
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        ids = torch.arange(40)[None]
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, result.model(ids).logits)
        assert "import loraprune" in (tmp_path / "out" / "README.md").read_text()

    def test_layers_that_are_kept_are_as_they_were(self, checkpoint: Path, data: Path) -> None:
        dense = matrices(AutoModelForCausalLM.from_pretrained(checkpoint))
        for values in ({"sparsity": 0.5}, {"ratio": 0.25, "repair": "refit"}):
            found = matrices(run(checkpoint, data, keep_layers=(0,), **values).model)
            for name, value in found.items():
                same_as_before = value.shape == dense[name].shape and torch.equal(value, dense[name])
                assert same_as_before == name.startswith("model.layers.0."), name

    def test_instructions_are_calibration_data_too(self, checkpoint: Path, tmp_path: Path) -> None:
        rows = [{"prompt": f"{number} and one is", "completion": f" {number + 1}"} for number in range(60)]
        source = write_jsonl(tmp_path / "data.jsonl", rows)
        result = run(checkpoint, source, sparsity=0.5)
        assert result.metrics["data"]["format"] == "prompt_completion"
        assert result.metrics["sparsity"]["reached"] == 0.5


class TestRepair:
    def test_each_repair_gives_other_weights(self, checkpoint: Path, data: Path) -> None:
        kept = {"ratio": 0.5, "method": "magnitude", "allocation": "uniform"}
        models = {repair: run(checkpoint, data, repair=repair, **kept).model for repair in ("none", "bias", "refit")}
        consumer = "model.layers.0.mlp.down_proj"
        none, bias, refit = (models[repair].get_submodule(consumer) for repair in ("none", "bias", "refit"))
        assert torch.equal(none.weight, bias.weight)
        assert none.bias is None
        assert bias.bias is not None
        assert not torch.equal(none.weight, refit.weight)

    def test_a_compensating_bias_is_saved_and_loaded(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        result = run(checkpoint, data, ratio=0.5, criterion="flap", repair="bias", output=tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert loaded.model.layers[0].mlp.down_proj.bias.abs().sum() > 0
        assert same(loaded, result.model)


class TestMixtures:
    @pytest.mark.filterwarnings("ignore:.*calibration tokens are fewer than:UserWarning")
    @pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
    def test_experts_become_sparse_and_the_router_stays(self, family: str, data: Path, tmp_path: Path) -> None:
        model = mixture(family)
        before = copy.deepcopy(model.state_dict())
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        result = run(tmp_path / "model", data, sparsity="2:4", output=tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert same(loaded, result.model)
        experts = 0
        for name, value in loaded.state_dict().items():
            if ".layers." in name and value.dim() == 3:
                assert bool(((value.unflatten(-1, (-1, 4)) == 0).sum(-1) >= 2).all()), name
                experts += len(value)
            if name.endswith("gate.weight"):
                assert torch.equal(value, before[name]), name
        assert experts == 2 * 2 * 8  # two layers, two matrices, eight experts
        assert {matrix.zeros / matrix.weights for matrix in result.matrices} == {0.5}

    @pytest.mark.parametrize("dimensions", [None, ("experts",)], ids=["default", "experts"])
    @pytest.mark.parametrize("method", ["osscar", "fisher"])
    def test_experts_are_cut(self, method: str, dimensions: Any, data: Path, tmp_path: Path) -> None:
        values = {"ratio": 0.25, "method": method, "dimensions": dimensions, "output": tmp_path / "out"}
        result = run(mixture("mixtral"), data, tokenizer=tiny_tokenizer(), repair="refit", **values)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert same(loaded, result.model)
        experts = loaded.model.layers[0].mlp.experts
        assert experts.down_proj.shape[0 if dimensions else 2] < (8 if dimensions else 32)


class TestOutput:
    @pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
    def test_what_goes_wrong_while_saving_leaves_the_old_folder(
        self, error: BaseException, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "pruning.json").write_text("mine")

        def fail(*arguments: Any, **named: Any) -> None:
            raise error

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
        with pytest.raises(InterruptedRunError if isinstance(error, KeyboardInterrupt) else type(error)):
            run(checkpoint, data, sparsity=0.5, output=out, overwrite=True)
        assert [path.name for path in out.iterdir()] == ["pruning.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run"]  # to continue from

    def test_the_record_tells_data_sizes_and_time(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        result = run(checkpoint, data, sparsity=0.5, output=tmp_path / "out", prompt="the old")
        found = json.loads((tmp_path / "out" / "pruning.json").read_text())
        assert found["metrics"] == json.loads(json.dumps(result.metrics))
        assert found["task"] == "causal-lm"
        assert found["metrics"]["seconds"] > 0
        assert found["metrics"]["data"]["format"] == "text"
        assert "trained_tokens" not in found["metrics"]["data"]
        assert found["settings"]["oneshot"]["max_length"] == 32
        completion = result.report.completions[0]
        assert (completion.prompt, completion.pruned) == ("the old", found["metrics"]["pruned"]["completion"])

    def test_a_length_that_nobody_gave_is_the_context_and_is_recorded(self, checkpoint: Path, data: Path) -> None:
        result = run(checkpoint, data, sparsity=0.5, max_length=None)
        assert result.report.settings["oneshot"]["max_length"] == 64

    def test_a_ratio_that_cannot_be_met_exactly_is_noted(self, checkpoint: Path, data: Path) -> None:
        for values, why in (
            ({"dimensions": ("channels",), "channel_multiple": 16}, "the config limits the head counts"),
            ({"dimensions": ("heads",), "allocation": "global"}, "groups are removed whole."),
        ):
            result = run(checkpoint, data, ratio=0.33, criterion="wanda", norm_steps=0, **values)
            (note,) = result.report.notes
            assert note.startswith(
                f"The ratio is {100 * result.metrics['pruning']['ratio']:.2f} % rather than 33.00 %: {why}"
            )
        assert run(checkpoint, data, ratio=0.5, allocation="uniform", norm_steps=0).report.notes == ()

    def test_widths_that_were_tried_are_told_and_recorded(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        result = run(checkpoint, data, ratio=0.5, max_length=32, output=tmp_path / "out")
        best, *others = result.run_record.metrics.pruning.trials
        assert others
        assert best.of == {"heads": 4, "channels": 64}
        assert all(best.divergence <= trial.divergence for trial in others)
        assert sum(trial.even for trial in (best, *others)) == 1
        for kind, width in best.widths.items():
            assert set(result.metrics["pruning"]["widths"][kind]) == {width}
        assert re.match(
            rf"Each layer keeps .* {best.widths['channels']} of 64 channels: of {len(others) + 1} choices "
            rf"tried, .* \(KL divergence {best.divergence:.3g} nats per token; the .*\)\.",
            result.report.notes[0],
        )
        assert RunRecord.read(tmp_path / "out").metrics.pruning == result.run_record.metrics.pruning


class TestNorms:
    def test_the_divergence_before_and_after_is_told_and_recorded(
        self, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        result = run(checkpoint, data, ratio=0.5, allocation="uniform", output=tmp_path / "out")
        norms = result.run_record.metrics.pruning.norms
        assert norms.after <= norms.before
        assert norms.steps in (0, 32)
        assert json.loads((tmp_path / "out" / "pruning.json").read_text())["metrics"]["pruning"]["norms"]
        (note,) = result.report.notes
        assert "norms" in note
        assert f"{norms.before:.3g}" in note

    def test_it_belongs_to_repairs_by_least_squares(self) -> None:
        steps = {repair: OneshotConfig(ratio=0.5, repair=repair).norm_steps for repair in REPAIRS}
        assert steps == {"refit": 32, "stream": 32, "stream+readers": 32, "bias": 0, "none": 0}
        assert OneshotConfig(ratio=0.5, repair="none", norm_steps=4).needs_data
        assert OneshotConfig(ratio=0.5, dimensions=("hidden",)).norm_steps == 0
        with pytest.raises(ValueError, match=r"norm_steps is -1"):
            OneshotConfig(ratio=0.5, norm_steps=-1)
        with pytest.raises(ValueError, match=r"norm_steps is an option for removing heads"):
            OneshotConfig(sparsity=0.5, norm_steps=4)


class TestProgress:
    def progress(self, checkpoint: Path, data: Path, **values: Any) -> list[tuple[str, int, int]]:
        heard: list[tuple[str, int, int]] = []
        run(checkpoint, data, progress=lambda *step: heard.append(step), **values)
        return heard

    def test_the_beginning_and_every_block_are_told(self, checkpoint: Path, data: Path) -> None:
        assert self.progress(checkpoint, data, sparsity=0.5) == [("sparsegpt", done, 2) for done in range(3)]

    def test_every_trial_is_told_before(self, checkpoint: Path, data: Path) -> None:
        heard = self.progress(checkpoint, data, criterion="fisher", ratio=0.5)
        names = list(dict.fromkeys(what for what, _, _ in heard))
        assert names[0] == "scoring for the trials"
        assert len([name for name in names if re.match(r"trying \d KV heads, \d+ channels$", name)]) >= 2
        assert names[-3:] == ["scoring", "cutting", "tuning the norms"]

    def test_scoring_and_cutting_are_told_of_every_cut(self, checkpoint: Path, data: Path) -> None:
        heard = self.progress(checkpoint, data, criterion="fisher", ratio=0.5, cuts=2, allocation="uniform")
        names = list(dict.fromkeys(what for what, _, _ in heard))
        assert names == ["scoring 1/2", "cutting 1/2", "scoring 2/2", "cutting 2/2", "tuning the norms"]
        for name in names:
            steps = [step for what, *step in heard if what == name]
            total = steps[0][1]
            assert steps == [[done, total] for done in range(total + 1)]


class TestWrongInput:
    def test_the_default_is_structured_and_half(self, checkpoint: Path, data: Path) -> None:
        result = oneshot(checkpoint, data, options=RunOptions(latency=False, eval_sequences=0))
        assert result.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.01)

    def test_data_are_not_needed_for_what_reads_weights(self, checkpoint: Path) -> None:
        assert run(checkpoint, None, criterion="magnitude", sparsity="2:4").metrics["sparsity"]["reached"] == 0.5
        with pytest.raises(ValueError, match=r"The repair 'refit' needs calibration data.*or --repair none"):
            run(checkpoint, None, criterion="magnitude", ratio=0.5, repair="refit")

    def test_nothing_is_loaded_before_the_checks(
        self, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(*arguments: Any, **options: Any) -> PreTrainedModel:
            raise AssertionError("weights were loaded")

        monkeypatch.setattr("loraprune.checkpoint.source.load_model", load)
        for values in ({"sparsity": "2:5"}, {"ratio": 0.99}, {"sparsity": 0.5, "max_length": 1000}):
            with pytest.raises(ValueError, match=r"2:5-sparse|would empty a dimension|longer than the model's context"):
                run(checkpoint, data, **values)

    def test_fewer_tokens_than_features_are_warned_of_and_damped_more(self, checkpoint: Path, tmp_path: Path) -> None:
        source = write_texts(tmp_path / "data.jsonl", count=1)
        with pytest.warns(UserWarning, match="calibration tokens are fewer than"):
            result = run(checkpoint, source, sparsity=0.5, max_length=8, calibration_sequences=1)
        assert all(matrix.damping > 0.01 for matrix in result.matrices)
        assert result.metrics["sparsity"]["reached"] == pytest.approx(0.5, abs=0.001)

    def test_norms_of_few_tokens_are_enough_for_wanda(
        self, checkpoint: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        source = write_texts(tmp_path / "data.jsonl", count=1)
        run(checkpoint, source, criterion="wanda", sparsity=0.5, max_length=8, calibration_sequences=1)
        assert not [warning for warning in recwarn if "calibration tokens" in str(warning.message)]


def test_the_package_offers_it() -> None:
    assert loraprune.oneshot is oneshot
    assert {"oneshot", "OneshotConfig", "OneshotResult"} <= {*loraprune.__all__}
