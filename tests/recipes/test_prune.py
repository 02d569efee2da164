from __future__ import annotations

import json
import os
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from tests.checkpoints import (
    EOS,
    PAD,
    VOCABULARY,
    byte_model,
    sentences,
    tiny_checkpoint,
    tiny_tokenizer,
    write_jsonl,
)
from tests.finished_run import CONFIG, QUICK
from tests.models import logits_of, token_ids
from tests.thinned import thinned
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, TrainerCallback

import loraprune
from loraprune import Plan, PruneResult, PruningConfig, RunOptions, describe, prune
from loraprune.pruning.errors import InterruptedRunError, TrainingDivergedError
from loraprune.surgery.slicing import slice_
from loraprune.tasks.options import LoraOptions

IDS = token_ids(2, 11, vocabulary=VOCABULARY)


def quick(model: Any, data: Any, config: PruningConfig = CONFIG, *, output: Path | None = None, **changes: Any) -> Any:
    """A run that only trains and saves."""
    options = changes.pop("options", {})
    training = {**QUICK, **changes.pop("training", {})}
    return prune(
        model,
        data,
        config,
        training=training,
        options=RunOptions(**{"output": output, "latency": False, **options}),
        **changes,
    )


def record_of(result: PruneResult) -> dict[str, Any]:
    assert result.output is not None
    record: dict[str, Any] = json.loads((result.output / "pruning.json").read_text())
    return record


class TestResult:
    def test_the_model_is_plain_merged_and_ready_to_use(self, finished: PruneResult) -> None:
        assert type(finished.model) is LlamaForCausalLM
        assert not finished.model.training
        assert not any("lora" in name for name, _ in finished.model.named_modules())
        assert finished.model.num_parameters() == finished.metrics["pruned"]["parameters"]

    def test_the_folder_holds_the_model_of_the_result(self, finished: PruneResult) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(finished.output)
        assert torch.equal(logits_of(loaded, IDS), logits_of(finished.model, IDS))

    def test_structure_and_plan_are_those_of_the_original(self, finished: PruneResult, checkpoint: Path) -> None:
        original = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert finished.structure == describe(original)
        finished.plan.check(finished.structure)
        assert finished.plan.is_uniform(finished.structure)
        assert finished.plan.ratio(finished.structure) == pytest.approx(0.5, abs=0.01)
        assert finished.model.config.intermediate_size == finished.plan.count("layers.0.channels")
        assert finished.model.config.num_key_value_heads == finished.plan.count("layers.0.heads")

    def test_dense_unrecovered_and_pruned_are_measured(self, finished: PruneResult) -> None:
        metrics = finished.metrics
        dense, unrecovered, pruned = metrics["dense"], metrics["unrecovered"], metrics["pruned"]
        assert dense["num_tokens"] == unrecovered["num_tokens"] == pruned["num_tokens"] > 0
        assert dense["perplexity"] != pruned["perplexity"] != unrecovered["perplexity"]
        assert dense["data_fingerprint"] == pruned["data_fingerprint"] == unrecovered["data_fingerprint"]
        assert unrecovered["parameters"] == pruned["parameters"] < dense["parameters"]
        assert pruned["bytes"] == 4 * pruned["parameters"]
        assert dense["latency_ms"] > 0 < pruned["latency_ms"]
        assert pruned["latency_tokens"] == 64
        assert dense["completion"] != pruned["completion"]
        assert metrics["skipped_steps"] == []
        assert metrics["seconds"] > 0

    def test_the_course_of_the_run_is_told(self, finished: PruneResult) -> None:
        history = finished.metrics["history"]
        assert [point["step"] for point in history] == [1, 2, 3, 4, 5, 6]
        assert history[-1]["ratio"] == finished.metrics["pruning"]["ratio"] == finished.report.headline.ratio
        assert finished.report.completions[0].prompt == "the old river"


class TestFolder:
    def test_it_holds_the_checkpoint_the_record_the_card_and_the_report(self, finished: PruneResult) -> None:
        assert finished.output is not None
        assert {path.name for path in finished.output.iterdir()} == {
            "README.md",
            "adapter",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "plan.json",
            "pruning.json",
            "report.html",
            "report.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    def test_nothing_else_is_left_beside_it(self, finished: PruneResult) -> None:
        assert finished.output is not None
        assert [path.name for path in finished.output.parent.iterdir()] == ["out"]

    def test_the_record_says_what_was_done(self, finished: PruneResult, checkpoint: Path) -> None:
        record = record_of(finished)
        assert record["base_model"] == str(checkpoint)
        assert record["command"] == "loraprune prune tiny-llama --data texts.jsonl"
        assert record["plan"] == finished.plan.to_json()
        assert record["metrics"] == json.loads(json.dumps(finished.metrics))
        assert record["metrics"]["data"]["format"] == "text"
        assert record["settings"]["pruning"] == json.loads(json.dumps({**CONFIG.to_saved(), "seed": 11}))
        assert record["settings"]["lora"]["r"] == 8
        assert record["settings"]["lora"]["target_modules"] == sorted(
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        )
        training = record["settings"]["training"]
        assert (training["seed"], training["max_steps"], training["learning_rate"]) == (11, 6, 5e-3)
        assert training["lr_scheduler_type"] == "cosine"

    def test_the_record_names_the_versions(self, finished: PruneResult) -> None:
        versions = record_of(finished)["versions"]
        assert versions["loraprune"] == loraprune.__version__
        for package in ("torch", "transformers", "peft", "trl"):
            assert versions[package] == version(package)
        assert "python" in versions

    def test_the_card_tells_what_it_is_and_how_it_was_made(self, finished: PruneResult) -> None:
        assert finished.output is not None
        card = (finished.output / "README.md").read_text()
        front, _, text = card.removeprefix("---\n").partition("\n---\n")
        assert "library_name: transformers" in front
        assert "base_model" not in front  # a folder of this machine is nothing for the hub
        assert text.startswith("# tiny-llama, 50 % of the prunable parameters removed")
        assert "Load it with `AutoModelForCausalLM.from_pretrained`" in text
        assert "```\nloraprune prune tiny-llama --data texts.jsonl\n```" in text
        assert f"Made with loraprune {loraprune.__version__}." in text
        dense, pruned = (finished.metrics[which]["parameters"] for which in ("dense", "pruned"))
        assert f"| parameters | {dense:,} | {pruned:,} |" in text
        assert f"held-out perplexity ({finished.metrics['pruned']['segment_length']}-token segments)" in text

    def test_the_report_is_a_page_about_this_run(self, finished: PruneResult) -> None:
        assert finished.output is not None
        page = (finished.output / "report.html").read_text()
        assert "<title>tiny-llama, 50 % of the prunable parameters removed" in page
        assert (
            json.loads((finished.output / "report.json").read_text())["title"]
            == "tiny-llama, 50 % of the prunable parameters removed"
        )

    def test_adapter_and_plan_make_the_result_again_where_nothing_was_refitted(
        self, tmp_path: Path, checkpoint: Path, data: Path
    ) -> None:
        config = PruningConfig(ratio=0.5, repair="none")
        training = {"learning_rate": 1e-2}
        result = quick(
            checkpoint, data, config, output=tmp_path / "out", training=training, options={"save_adapter": True}
        )
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        structure = describe(base)
        plan = Plan.from_json(json.loads((tmp_path / "out" / "plan.json").read_text()))
        slice_(base, structure, Plan.full(structure), plan)
        without = logits_of(base, IDS)
        adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
        torch.testing.assert_close(logits_of(adapted, IDS), logits_of(result.model, IDS), rtol=0.0, atol=1e-5)
        assert (without - logits_of(result.model, IDS)).abs().max() > 1e-3

    def test_reports_adapters_and_the_runs_own_checkpoints_can_be_left_out_or_kept(
        self, tmp_path: Path, checkpoint: Path, data: Path
    ) -> None:
        quick(checkpoint, data, output=tmp_path / "out", options={"report": False, "keep_run": True})
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert not names & {"report.html", "report.json", "adapter", "plan.json"}
        assert (tmp_path / "out.run" / "checkpoint-6").is_dir()

    def test_without_an_output_nothing_is_written_anywhere(
        self, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        result = quick(checkpoint, data)
        assert result.output is None
        assert list(tmp_path.iterdir()) == []


class TestData:
    def chat(self, number: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"it is {number}"}]

    def source(self, kind: str, folder: Path) -> Path:
        texts = sentences(30)
        if kind == "text jsonl":
            return write_jsonl(folder / "data.jsonl", ({"text": text} for text in texts))
        if kind == "prompt and completion":
            return write_jsonl(folder / "data.jsonl", ({"prompt": text[:9], "completion": text[9:]} for text in texts))
        if kind == "instructions json":
            path = folder / "data.json"
            path.write_text(json.dumps([{"instruction": text[:9], "input": "", "output": text[9:]} for text in texts]))
            return path
        if kind == "chat":
            return write_jsonl(folder / "data.jsonl", ({"messages": self.chat(number)} for number in range(30)))
        if kind == "csv":
            path = folder / "data.csv"
            path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
            return path
        path = folder / "data.txt"
        path.write_text("\n\n".join(texts))
        return path

    @pytest.mark.parametrize(
        ("kind", "form", "answers"),
        thinned(
            [
                ("text jsonl", "text", False),
                ("prompt and completion", "prompt_completion", True),
                ("instructions json", "instruction", True),
                ("chat", "messages", True),
                ("csv", "text", False),
                ("txt", "text", False),
            ],
            3,
        ),
    )
    def test_every_format_is_trained_on(
        self, tmp_path: Path, checkpoint: Path, kind: str, form: str, answers: bool
    ) -> None:
        training = {"max_steps": 2, "max_length": 64}
        result = quick(checkpoint, str(self.source(kind, tmp_path)), training=training)
        found = result.metrics["data"]
        assert found["format"] == form
        assert 0 < found["trained_tokens"] < found["tokens"]
        rows = 30 if answers else found["tokens"] / 64
        # Of plain text all but the first token of a row is trained, of the others the answers alone.
        assert (found["trained_tokens"] < found["tokens"] - rows) is answers
        assert result.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.01)

    def test_questions_are_trained_on_too_when_asked_for(self, tmp_path: Path, checkpoint: Path) -> None:
        source = self.source("prompt and completion", tmp_path)
        both = [
            quick(checkpoint, source, training={"max_steps": 1}, options={"answers_only": answers_only})
            for answers_only in (True, False)
        ]
        trained = [result.metrics["data"]["trained_tokens"] for result in both]
        assert trained[0] < trained[1] == both[1].metrics["data"]["tokens"] - 30

    def test_a_loaded_data_set_is_taken(self, checkpoint: Path) -> None:
        rows = datasets.Dataset.from_dict({"text": sentences(40)})
        result = quick(checkpoint, rows)
        assert result.metrics["data"]["format"] == "text"
        assert rows.column_names == ["text"]

    def test_data_to_measure_on_can_be_named(self, tmp_path: Path, checkpoint: Path, data: Path) -> None:
        held_out = write_jsonl(tmp_path / "held.jsonl", [{"text": "a" * 100}, {"text": "b" * 100}])
        result = quick(checkpoint, data, options={"eval_data": str(held_out), "eval_sequences": 3})
        assert result.metrics["pruned"]["num_tokens"] == 3 * 31

    def test_nothing_is_measured_when_no_sequences_are_asked_for(self, checkpoint: Path, data: Path) -> None:
        result = quick(checkpoint, data, options={"eval_sequences": 0})
        assert "perplexity" not in result.metrics["dense"]
        assert "perplexity" not in result.metrics["pruned"]
        assert [row.label for row in result.report.rows] == ["Parameters", "File size"]


class TestModel:
    def test_a_loaded_model_is_taken_and_used_up(self, data: Path) -> None:
        model = byte_model()
        before = model.num_parameters()
        result = quick(model, data, tokenizer=tiny_tokenizer())
        assert result.model.num_parameters() < before
        assert result.metrics["dense"]["parameters"] == before
        assert result.report.model == "model"

    def test_a_loaded_model_gives_what_its_folder_gives(self, checkpoint: Path, data: Path) -> None:
        of_folder = quick(checkpoint, data)
        of_model = quick(AutoModelForCausalLM.from_pretrained(checkpoint), data, tokenizer=str(checkpoint))
        assert of_model.plan == of_folder.plan
        assert torch.equal(logits_of(of_model.model, IDS), logits_of(of_folder.model, IDS))

    @pytest.mark.parametrize("family", thinned(["mistral", "qwen2", "qwen3"]))
    def test_every_family_is_pruned_and_keeps_its_class(self, tmp_path: Path, data: Path, family: str) -> None:
        folder = tiny_checkpoint(tmp_path / family, family)
        result = quick(folder, data, output=tmp_path / "out", training={"max_steps": 2})
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert loaded.config.model_type == family
        assert torch.equal(logits_of(loaded, IDS), logits_of(result.model, IDS))

    def test_a_16_bit_checkpoint_stays_one_on_disk_and_in_memory(self, tmp_path: Path, data: Path) -> None:
        folder = tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
        result = quick(folder, data, output=tmp_path / "out")
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
        assert loaded.dtype == result.model.dtype == torch.bfloat16
        for (name, found), (_, expected) in zip(loaded.named_buffers(), result.model.named_buffers(), strict=True):
            assert torch.equal(found, expected), name
        assert torch.equal(logits_of(loaded, IDS), logits_of(result.model, IDS))
        assert result.metrics["pruned"]["bytes"] == 2 * result.metrics["pruned"]["parameters"]

    @pytest.mark.parametrize("pad", thinned([False, True]))
    def test_pad_token_and_cache_of_the_original_are_kept(self, tmp_path: Path, data: Path, pad: bool) -> None:
        folder = tiny_checkpoint(
            tmp_path / "model", tokenizer=tiny_tokenizer(pad=pad), pad_token_id=PAD if pad else None
        )
        result = quick(folder, data, output=tmp_path / "out")
        for tokenizer in (result.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")):
            assert tokenizer.pad_token == ("<pad>" if pad else None)
            assert tokenizer.eos_token == "</s>"
        for config in (result.model.config, AutoConfig.from_pretrained(tmp_path / "out")):
            assert config.pad_token_id == (PAD if pad else None)
            assert config.eos_token_id == EOS
            assert config.use_cache is True
        before, after = (
            json.loads((path / "generation_config.json").read_text()) for path in (folder, tmp_path / "out")
        )
        assert after == before

    def test_special_tokens_of_the_config_are_kept_where_the_tokenizer_has_others(
        self, tmp_path: Path, data: Path
    ) -> None:
        folder = tiny_checkpoint(tmp_path / "model", bos_token_id=1, eos_token_id=[2, EOS])
        quick(folder, data, output=tmp_path / "out")
        saved = AutoConfig.from_pretrained(tmp_path / "out")
        assert (saved.bos_token_id, saved.eos_token_id) == (1, [2, EOS])

    def test_the_chat_template_comes_along(self, finished: PruneResult) -> None:
        saved = AutoTokenizer.from_pretrained(finished.output)
        assert saved.chat_template == tiny_tokenizer().chat_template


class TestOptions:
    def test_a_parameter_target_takes_the_place_of_a_ratio(self, checkpoint: Path, data: Path) -> None:
        result = quick(checkpoint, data, options={"target_params": 27_000})
        finest = sum(d.parameters_per_group for d in result.structure.of_kind("channels"))
        assert abs(result.model.num_parameters() - 27_000) <= finest / 2
        assert result.metrics["pruning"]["target_ratio"] != 0.5

    @pytest.mark.parametrize("target", [100, 10**9])
    def test_a_parameter_target_out_of_reach_is_refused(self, checkpoint: Path, data: Path, target: int) -> None:
        with pytest.raises(ValueError, match=rf"A target of {target:,} parameters cannot be met: the model has"):
            quick(checkpoint, data, options={"target_params": target})

    def test_a_ratio_of_0_is_plain_tuning(self, tmp_path: Path, checkpoint: Path, data: Path) -> None:
        result = quick(checkpoint, data, PruningConfig(ratio=0.0), output=tmp_path / "out")
        assert result.plan == Plan.full(result.structure)
        assert result.metrics["pruning"]["cuts"] == []
        assert "Nothing was pruned." in (tmp_path / "out" / "README.md").read_text()

    def test_a_ratio_that_the_widths_cannot_meet_is_noted(self, checkpoint: Path, data: Path) -> None:
        result = quick(checkpoint, data, PruningConfig(ratio=0.47, channel_multiple=16, allocation="uniform"))
        found = result.metrics["pruning"]["ratio"]
        assert abs(found - 0.47) > 0.002
        assert result.model.config.intermediate_size % 16 == 0
        assert result.report.notes == (
            f"The ratio is {100 * found:.2f} % rather than 47.00 %: FFN widths are multiples of 16, and the "
            "config limits the head counts.",
        )

    @pytest.mark.parametrize("lora", [LoraOptions(r=2, alpha=6), LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM")])
    def test_lora_is_set_by_our_options_or_by_pefts(
        self, tmp_path: Path, checkpoint: Path, data: Path, lora: Any
    ) -> None:
        if isinstance(lora, LoraConfig):
            lora.target_modules = {"q_proj", "down_proj"}
        result = quick(checkpoint, data, lora=lora, output=tmp_path / "out")
        settings = record_of(result)["settings"]["lora"]
        assert (settings["r"], settings["alpha"]) == (2, 6)
        assert len(settings["target_modules"]) == (2 if isinstance(lora, LoraConfig) else 7)

    def test_an_unknown_layer_for_lora_is_refused_with_those_there_are(self, checkpoint: Path, data: Path) -> None:
        with pytest.raises(ValueError, match=r"cannot adapt query: the layers of the blocks are down_proj, gate_proj"):
            quick(checkpoint, data, lora=LoraOptions(target_modules=["query"]))

    def test_heads_that_the_config_refuses_are_exported_as_a_mistral_on_request(
        self, tmp_path: Path, checkpoint: Path, data: Path
    ) -> None:
        # A quarter off, in equal shares, is three of four KV heads: six query heads, which do not divide 32.
        config = PruningConfig(ratio=0.25, allocation="uniform", head_counts="any", channel_multiple=16)
        result = quick(checkpoint, data, config, output=tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert (loaded.config.model_type, loaded.config.num_attention_heads) == ("mistral", 6)
        torch.testing.assert_close(logits_of(loaded, IDS), logits_of(result.model, IDS), rtol=0.0, atol=1e-6)

    def test_options_may_be_numbers_of_numpy_as_in_a_sweep(self, tmp_path: Path, checkpoint: Path, data: Path) -> None:
        config = PruningConfig(ratio=np.float64(0.5), cuts=np.int64(2), damping=np.float32(0.25))
        training = {"learning_rate": np.float64(0.5e-3), "weight_decay": np.float32(0.25), "save_steps": 2}
        result = quick(checkpoint, data, config, output=tmp_path / "out", training=training)
        card = (tmp_path / "out" / "README.md").read_text()
        recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
        assert recipe == record_of(result)["recipe"]
        given = {"ratio": 0.5, "cuts": 2, "damping": 0.25, "learning_rate": 0.5e-3, "weight_decay": 0.25}
        assert recipe | given == recipe

    def test_resuming_needs_an_output(self) -> None:
        with pytest.raises(ValueError, match="cannot be resumed"):
            RunOptions(resume=True)

    def test_a_negative_number_of_sequences_is_refused(self) -> None:
        with pytest.raises(ValueError, match="eval_sequences is -1"):
            RunOptions(eval_sequences=-1)


class TestSeed:
    def test_the_same_seed_gives_the_same_model_whatever_the_global_random_state(
        self, checkpoint: Path, data: Path
    ) -> None:
        results = []
        for state in (1, 2):
            torch.manual_seed(state)
            results.append(quick(checkpoint, data, training={"seed": 5}))
        assert results[0].plan == results[1].plan
        losses = [[point["loss"] for point in result.metrics["history"]] for result in results]
        assert losses[0] == losses[1]
        assert torch.equal(logits_of(results[0].model, IDS), logits_of(results[1].model, IDS))

    @pytest.mark.full
    def test_another_seed_gives_another_run(self, checkpoint: Path, data: Path) -> None:
        losses = [
            [point["loss"] for point in quick(checkpoint, data, training={"seed": seed}).metrics["history"]]
            for seed in (5, 6)
        ]
        assert losses[0] != losses[1]


TWELVE = {"max_steps": 12}


class CtrlC(TrainerCallback):
    """Sends this process what Ctrl-C sends, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore:Training ended")
def _untimed(result: PruneResult) -> dict[str, Any]:
    """The course of pruning without the seconds that cuts took."""
    pruning = result.metrics["pruning"]
    return pruning | {"cuts": [{**cut, "seconds": None} for cut in pruning["cuts"]]}


class TestInterruption:
    def test_ctrl_c_ends_the_step_and_resuming_ends_as_an_uninterrupted_run_does(
        self, tmp_path: Path, checkpoint: Path, data: Path
    ) -> None:
        expected = quick(checkpoint, data, output=tmp_path / "whole", training=TWELVE)
        output = tmp_path / "out"
        with pytest.raises(InterruptedRunError, match=r"Stopped at step 3 of 12; nothing was written") as caught:
            quick(checkpoint, data, output=output, training=TWELVE, callbacks=[CtrlC(3)])
        assert str(tmp_path / "out.run") in str(caught.value)
        assert "--resume" in str(caught.value)
        assert not output.exists()
        result = quick(checkpoint, data, output=output, training=TWELVE, options={"resume": True})
        assert result.plan == expected.plan
        assert [point["loss"] for point in result.metrics["history"]] == [
            point["loss"] for point in expected.metrics["history"]
        ]
        assert torch.equal(logits_of(result.model, IDS), logits_of(expected.model, IDS))
        assert result.metrics["pruned"]["perplexity"] == expected.metrics["pruned"]["perplexity"]
        # What is told of ranking and errors does not know of the interruption either.
        assert _untimed(result) == _untimed(expected)
        assert len([cut for cut in _untimed(result)["cuts"] if cut["stability"]]) >= 2
        assert result.report.importance == expected.report.importance
        assert list(result.metrics["phases"]) == list(expected.metrics["phases"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]

    @pytest.mark.full
    def test_ctrl_c_works_as_before_after_a_run(self, checkpoint: Path, data: Path) -> None:
        before = signal.getsignal(signal.SIGINT)
        quick(checkpoint, data)
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(InterruptedRunError):
            quick(checkpoint, data, callbacks=[CtrlC(2)])
        assert signal.getsignal(signal.SIGINT) is before

    def test_an_interrupted_run_is_not_started_over_by_accident(
        self, tmp_path: Path, checkpoint: Path, data: Path
    ) -> None:
        output = tmp_path / "out"
        with pytest.raises(InterruptedRunError):
            quick(checkpoint, data, output=output, training=TWELVE, callbacks=[CtrlC(2)])
        with pytest.raises(ValueError, match=r"holds an interrupted run. Continue it with --resume, or start again"):
            quick(checkpoint, data, output=output, training=TWELVE)
        with pytest.raises(ValueError, match=r"other pruning options \(ratio: 0\.5 -> 0\.25\)"):
            quick(checkpoint, data, PruningConfig(ratio=0.25, calibration_sequences=8), output=output,
                  training=TWELVE, options={"resume": True})  # fmt: skip
        result = quick(checkpoint, data, output=output, training=TWELVE, options={"overwrite": True})
        assert [point["step"] for point in result.metrics["history"]] == list(range(1, 13))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_there_must_be_something_to_resume(self, tmp_path: Path, checkpoint: Path, data: Path) -> None:
        with pytest.raises(ValueError, match=r"nothing to resume: .*out\.run has no saved state"):
            quick(checkpoint, data, output=tmp_path / "out", options={"resume": True})


class Poison(TrainerCallback):
    """Makes gradients NaN from a step on; it is asked before the pruning looks, as early as a micro-batch."""

    def __init__(self, start: int) -> None:
        self.start = start

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.start:
            kwargs["model"].get_base_model().lm_head.weight.data.fill_(float("nan"))


@pytest.mark.filterwarnings("ignore:Step")
@pytest.mark.filterwarnings("ignore:Training ended")
def test_a_run_that_diverges_leaves_no_output_and_the_last_good_state(
    tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    with pytest.raises(TrainingDivergedError, match=f"from step 3 on.*The last good state is saved in {tmp_path}"):
        quick(
            checkpoint,
            data,
            PruningConfig(max_skipped_steps=1, calibration_sequences=4),
            output=tmp_path / "out",
            training={"max_steps": 12, "save_steps": 1},
            callbacks=[Poison(3)],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    assert sorted(path.name for path in (tmp_path / "out.run").glob("*-[0-9]*")) == ["checkpoint-1", "diverged-2"]
