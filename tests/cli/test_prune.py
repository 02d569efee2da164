from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.checkpoints import CONTEXT, byte_model, tiny_checkpoint, tiny_tokenizer, write_jsonl
from tests.cli.conftest import QUICK, Command
from tests.thinned import thinned
from transformers import AutoModelForCausalLM

from loraprune.cli.prune import PRUNE_OPTIONS
from loraprune.importance.configs import Compresso
from loraprune.pruning.config import PruningConfig


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pruning.json").read_text())
    return found


def recipe(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def refused(run: Command, checkpoint: Path, data: Path, out: Path) -> Any:
    """Runs a command that must end with exit code 2 and an error of one line, without anything written."""

    def command(*options: str | Path, model: Path | str = checkpoint, source: Path | str = data) -> str:
        before = sorted(out.parent.iterdir())
        finished = run("prune", model, "--data", source, "-o", out, *QUICK, *options)
        assert finished.code == 2, finished.err
        assert finished.out == ""
        assert sorted(out.parent.iterdir()) == before
        *_, last = finished.err.splitlines()
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return command


class TestRun:
    def test_a_checkpoint_is_pruned_from_end_to_end(self, tmp_path: Path, checkpoint: Path, data: Path) -> None:
        """As a user runs it: in a process of its own."""
        arguments = ["prune", str(checkpoint), "--data", str(data), "-o", "out", *QUICK, "--ratio", "0.4"]
        finished = subprocess.run(
            [sys.executable, "-m", "loraprune", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            # A shell lets what it runs in the background ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert finished.returncode == 0, finished.stderr
        assert "Checkpoint: out\n" in finished.stdout
        assert f"Report:     {Path('out', 'report.html')}\n" in finished.stdout
        assert "Parameters" in finished.stdout
        assert "Held-out perplexity" in finished.stdout
        steps = [line for line in finished.stderr.splitlines() if line.startswith("step ")]
        assert [line.split()[1] for line in steps] == ["1/4", "2/4", "3/4", "4/4"]
        assert "warning" not in finished.stderr.lower()
        assert "Traceback" not in finished.stderr
        found = record(tmp_path / "out")
        assert found["command"] == "loraprune " + " ".join(arguments)
        assert found["metrics"]["pruning"]["ratio"] == pytest.approx(0.4, abs=0.01)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.num_parameters() == found["metrics"]["pruned"]["parameters"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_quiet_prints_results_only(self, run: Command, checkpoint: Path, data: Path, out: Path) -> None:
        finished = run("prune", checkpoint, "--data", data, "-o", out, *QUICK, "-q")
        assert finished.code == 0
        assert finished.err == ""
        assert "Checkpoint: " in finished.out

    def test_every_option_reaches_what_it_sets(self, run: Command, checkpoint: Path, data: Path, out: Path) -> None:
        finished = run(
            *("prune", checkpoint, "--data", data, "-o", out, *QUICK),
            *("--criterion", "lora", "--lora-form", "absolute", "--allocation", "uniform", "--prune-start", "0.2"),
            *("--prune-end", "0.6", "--cuts", "2", "--repair", "none", "--average-decay", "0.5", "--apply", "mask"),
            *("--no-average-bias-correction", "--channel-multiple", "4", "--head-counts", "any"),
            *("--max-skipped-steps", "3", "--damping", "0.1"),  # of a damping there is no use without a repair
            *("--lora-r", "2", "--lora-alpha", "5", "--lora-dropout", "0.1", "--learning-rate", "3e-3", "--seed", "9"),
            *("--lora-target-modules", "q_proj", "o_proj", "up_proj", "down_proj", "--no-report", "--save-adapter"),
        )
        assert finished.code == 0, finished.err
        settings = record(out)["settings"]
        expected = {
            "criterion": "lora",
            "lora_form": "absolute",
            "allocation": "uniform",
            "prune_start": 0.2,
            "prune_end": 0.6,
            "cuts": 2,
            "refit": False,
            "average_decay": 0.5,
            "average_bias_correction": False,
            "apply": "mask",
            "channel_multiple": 4,
            "any_head_count": True,
            "max_skipped_steps": 3,
            "calibration_sequences": 16,
            "seed": 9,
        }
        assert {name: settings["pruning"][name] for name in expected} == expected
        assert (settings["lora"]["r"], settings["lora"]["alpha"], settings["lora"]["dropout"]) == (2, 5, 0.1)
        assert settings["lora"]["target_modules"] == ["down_proj", "o_proj", "q_proj", "up_proj"]
        assert settings["training"]["learning_rate"] == 3e-3
        assert not (out / "report.html").exists()
        assert (out / "adapter" / "adapter_model.safetensors").is_file()

    def test_pruning_has_an_option_for_every_setting(self) -> None:
        found = {option.field or name for name, option in PRUNE_OPTIONS.items() if option.target == "pruning"}
        # the seed is the Trainer's, and two criteria have options of their own
        assert found == set(PruningConfig.flat_names()) - {"seed", "compresso", "pst"}

    def test_compresso_has_an_option_for_every_setting(self) -> None:
        found = {option.field for option in PRUNE_OPTIONS.values() if option.target == "compresso"}
        assert found == {field.name for field in fields(Compresso)}

    @pytest.mark.full
    def test_learnt_gates_prune_with_a_prompt_before_the_rows(
        self, run: Command, checkpoint: Path, data: Path, out: Path
    ) -> None:
        finished = run(
            *("prune", checkpoint, "--data", data, "-o", out, *QUICK, "--criterion", "compresso", "--ratio", "0.4"),
            *("--compresso-learning-rate", "0.3", "--compresso-multiplier-learning-rate", "2", "--prune-end", "0.5"),
            *("--compresso-warmup", "0.25", "--compresso-ramp", "cubic", "--compresso-initial-drop", "0.1"),
            *("--pruning-prompt", "Be small."),
        )
        assert finished.code == 0, finished.err
        assert record(out)["settings"]["pruning"]["compresso"] == {
            "learning_rate": 0.3,
            "multiplier_learning_rate": 2.0,
            "warmup": 0.25,
            "ramp": "cubic",
            "initial_drop": 0.1,
            "prompt": "Be small.",
        }
        pruning = record(out)["metrics"]["pruning"]
        assert [cut["step"] for cut in pruning["cuts"]] == [2]
        assert abs(pruning["ratio"] - 0.4) < 0.1
        assert "“Be small.”" in (out / "README.md").read_text()
        AutoModelForCausalLM.from_pretrained(out)

    @pytest.mark.parametrize("option", thinned(["--max-steps", "--max_steps"]))
    def test_training_options_are_written_with_dashes_or_underscores(
        self, run: Command, checkpoint: Path, data: Path, out: Path, option: str
    ) -> None:
        finished = run("prune", checkpoint, "--data", data, "-o", out, *QUICK[1:], option, "2")
        assert finished.code == 0, finished.err
        assert record(out)["settings"]["training"]["max_steps"] == 2

    @pytest.mark.full
    @pytest.mark.parametrize("value", [[], ["true"]])
    def test_a_switch_of_the_trainer_needs_no_value(
        self, run: Command, checkpoint: Path, data: Path, out: Path, value: list[str]
    ) -> None:
        finished = run("prune", checkpoint, "--data", data, "-o", out, *QUICK, "--bf16", *value)
        assert finished.code == 0, finished.err
        assert record(out)["settings"]["training"]["bf16"] is True

    @pytest.mark.full
    def test_a_parameter_target_is_met(self, run: Command, checkpoint: Path, data: Path, out: Path) -> None:
        finished = run("prune", checkpoint, "--data", data, "-o", out, *QUICK, "--target-params", "27k")
        assert finished.code == 0, finished.err
        assert record(out)["metrics"]["pruned"]["parameters"] == pytest.approx(27_000, abs=96)

    def test_overwrite_replaces_what_was_there(self, run: Command, checkpoint: Path, data: Path, out: Path) -> None:
        out.mkdir()
        (out / "pruning.json").write_text("old")
        (out / "vocab.txt").write_text("old")
        finished = run("prune", checkpoint, "--data", data, "-o", out, *QUICK, "--overwrite")
        assert finished.code == 0, finished.err
        assert not (out / "vocab.txt").exists()
        assert (out / "config.json").is_file()
        assert [path.name for path in out.parent.iterdir()] == ["out"]


class TestRecipe:
    def test_a_recipe_holds_every_option_and_the_command_line_wins(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        path = recipe(
            tmp_path / "recipe.yaml",
            model=str(checkpoint),
            data=str(data),
            output=str(tmp_path / "other"),
            ratio=0.25,
            repair="none",
            lora_r=2,
            latency=False,
            max_steps=3,
            **{"max-length": 32, "per_device_train_batch_size": 4},
        )
        finished = run("prune", "--config", path, "--ratio", "0.5", "-o", out, "--max_steps", "2", "--prune_end=0.9")
        assert finished.code == 0, finished.err
        settings = record(out)["settings"]
        assert (settings["pruning"]["ratio"], settings["pruning"]["refit"]) == (0.5, False)
        assert settings["pruning"]["prune_end"] == 0.9
        assert settings["lora"]["r"] == 2
        assert (settings["training"]["max_steps"], settings["training"]["max_length"]) == (2, 32)
        assert not (tmp_path / "other").exists()

    @pytest.mark.full
    def test_numbers_that_yaml_takes_for_text_are_numbers(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("learning_rate: 3e-3\ndamping: 1e-1\ntarget_params: 27k\nlora_target_modules: q_proj\n")
        assert yaml.safe_load(path.read_text())["learning_rate"] == "3e-3"
        finished = run("prune", checkpoint, "--config", path, "--data", data, "-o", out, *QUICK)
        assert finished.code == 0, finished.err
        settings = record(out)["settings"]
        assert settings["training"]["learning_rate"] == 3e-3
        assert settings["pruning"]["refit_damping"] == 0.1
        assert settings["lora"]["target_modules"] == ["q_proj"]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"ration": 0.3}, "The recipe has an unknown option 'ration'. Did you mean 'ratio'?"),
            ({"lerning_rate": 1e-3}, "unknown option 'lerning_rate'. Did you mean 'learning_rate'?"),
            ({"ratio": "half"}, "The recipe's ratio is 'half': --ratio: 'half' is not a number"),
            ({"cuts": 2.5}, "The recipe's cuts is 2.5: --cuts: '2.5' is not a whole number"),
            ({"max_steps": "many"}, "The recipe's max_steps is 'many': "),
            ({"head_counts": "up"}, "The recipe's head_counts is 'up': --head-counts: 'up' is not one of"),
            ({"refit": "off"}, "The recipe's refit is 'off'; it must be true or false"),
            ({"model": 3}, "The recipe's model is 3; it must be text"),
            ({"trust_remote_code": True}, "holds trust_remote_code, which lets a checkpoint run code here. Only the"),
            ({"target_params": "x"}, "'x' is not a parameter count"),
            ({"ratio": 0.5, "target_params": "27k"}, "--ratio and --target-params both set the amount to remove"),
            ({"ratio": 0.5, "speedup": 1.5}, "--ratio and --speedup both set the amount to remove"),
            ({"ratio": 0.5, "target_kv_cache": 0.5}, "--ratio and --target-kv-cache both set the amount to remove"),
            ({"widths": "heads=1", "target_size": "1MB"}, "--widths and --target-size both set the amount to remove"),
            ({"widths": "heads:1"}, "write heads=3,channels=1120"),
            ({"target_size": "much"}, "target_size is 'much'; it must be a size such as 500MB"),
            ({"packing": True}, "--packing is not an option of this command. Plain text is packed"),
            ({"output_dir": "x"}, "--output-dir is not an option of this command. Say -o/--output."),
        ],
        ids=str,
    )
    def test_a_wrong_recipe_is_refused(self, refused: Any, tmp_path: Path, values: Any, message: str) -> None:
        assert message in refused("--config", recipe(tmp_path / "recipe.yaml", **values))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "recipe.yaml does not exist"),
            ("- a\n- b\n", "recipe.yaml must be a mapping of option names to values"),
            ("a: [1\n", "recipe.yaml cannot be read: "),
        ],
    )
    def test_a_recipe_that_cannot_be_read_is_refused(
        self, refused: Any, tmp_path: Path, text: str | None, message: str
    ) -> None:
        path = tmp_path / "recipe.yaml"
        if text is not None:
            path.write_text(text)
        assert message in refused("--config", path)

    def test_a_ratio_on_the_command_line_replaces_a_target_in_the_recipe(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        path = recipe(tmp_path / "recipe.yaml", target_params="27k")
        finished = run("prune", checkpoint, "--config", path, "--data", data, "-o", out, *QUICK, "--ratio", "0.25")
        assert finished.code == 0, finished.err
        assert record(out)["settings"]["pruning"]["ratio"] == 0.25


class TestWrongInvocation:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max-stepz", "3"], "unrecognized arguments: --max-stepz 3; did you mean --max-steps?"),
            (["--ratoi=0.3"], "did you mean --ratio?"),
            (["--ratio", "half"], "--ratio: 'half' is not a number"),
            (["--ratio", "0.5", "--target-params", "27k"], "--ratio and --target-params both set the amount to remove"),
            (["--target-params", "lots"], "'lots' is not a parameter count; write 4.5B"),
            (["--ratio", "1"], "ratio is 1.0; it must lie in [0, 1)"),
            (["--ratio", "1.5"], "ratio is 1.5; it must lie in [0, 1)"),
            (["--ratio", "-0.1"], "ratio is -0.1; it must lie in [0, 1)"),
            (["--ratio", "0.99"], "A ratio of 0.99 would empty a dimension: with at least 1 KV head(s)"),
            (["--channel-multiple", "100"], "Choose --channel-multiple between 1 and 64"),
            (["--criterion", "fischer"], "There is no criterion 'fischer'; choose one of fisher"),
            (["--apply", "mask"], "A repair needs sliced tensors"),
            (["--packing"], "--packing is not an option of this command"),
            (["--resume-from-checkpoint", "x"], "Say --resume."),
            (["--max-length", str(CONTEXT + 1)], f"longer than the model's context of {CONTEXT} tokens"),
            (["--lora-r", "0"], "lora_r is 0; it must be at least 1"),
            (["--lora-target-modules", "query"], "LoRA cannot adapt query: the layers of the blocks are down_proj"),
            (["--eval-data", "missing.jsonl"], "missing.jsonl does not exist."),
            (["--resume"], "There is nothing to resume: "),
            (["another"], "unrecognized arguments: another"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_option_is_refused_with_the_way_out(self, refused: Any, options: list[str], message: str) -> None:
        assert message in refused(*options)

    @pytest.mark.parametrize(
        ("left_out", "message"),
        [
            ("model", "The model is missing. Name a checkpoint: loraprune prune MODEL --data DATA -o OUT."),
            ("--data", "The data is missing. Name the training data with --data."),
            ("-o", "The output is missing. Name the folder of the result with -o."),
        ],
    )
    def test_what_is_needed_and_missing_is_named(
        self, run: Command, checkpoint: Path, data: Path, out: Path, left_out: str, message: str
    ) -> None:
        parts = {"model": [checkpoint], "--data": ["--data", data], "-o": ["-o", out]}
        del parts[left_out]
        finished = run("prune", *(word for words in parts.values() for word in words))
        assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
        assert not out.exists()

    def test_an_output_that_holds_something_is_refused_and_untouched(self, refused: Any, out: Path) -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        assert (
            refused() == f"{out} exists and is not empty. Choose another folder, or pass --overwrite (overwrite=True)."
        )
        assert (out / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize("output", [".", "..", "../"])
    def test_the_folder_one_is_in_cannot_be_the_output(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, output: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        finished = run("prune", checkpoint, "--data", data, "-o", output, *QUICK, "--overwrite")
        assert finished.code == 2
        assert "is the folder that you are in, or above it" in finished.err
        assert [path.name for path in tmp_path.iterdir()] == ["here"]

    def test_long_paths_in_messages_are_not_broken(self, run: Command, checkpoint: Path, data: Path) -> None:
        path = "/".join(["/no", *["such-folder"] * 12, "model"])
        finished = run("prune", path, "--data", data, "-o", "out")
        assert path in finished.err


class TestWrongInput:
    def test_an_unknown_architecture_is_named_with_those_that_are_supported(self, refused: Any, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text('{"model_type": "ctrl"}')
        message = refused(model=tmp_path / "model")
        assert "'ctrl' are not supported. Supported types: bert, bloom, cohere, " in message

    def test_a_model_that_needs_its_own_code_is_refused(self, refused: Any, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        (tmp_path / "model" / "configuration_own.py").write_text("raise SystemExit('this code was run')")
        assert "needs code from its own repository" in refused(model=tmp_path / "model")

    def test_a_missing_model_is_named(self, refused: Any, tmp_path: Path) -> None:
        assert f"{tmp_path / 'none'} is not a checkpoint: it has no config.json" in refused(model=tmp_path / "none")

    def test_a_model_without_tokenizer_is_refused_with_the_way_out(self, refused: Any, tmp_path: Path) -> None:
        byte_model().save_pretrained(tmp_path / "model")
        assert "Name a checkpoint that has one with --tokenizer." in refused(model=tmp_path / "model")

    @pytest.mark.full
    def test_a_tokenizer_of_another_checkpoint_may_be_named(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        byte_model().save_pretrained(tmp_path / "model")
        finished = run("prune", tmp_path / "model", "--tokenizer", checkpoint, "--data", data, "-o", out, *QUICK)
        assert finished.code == 0, finished.err
        assert (out / "tokenizer.json").is_file()

    def test_a_missing_data_file_is_named_with_one_that_may_be_meant(self, refused: Any, data: Path) -> None:
        mistyped = data.with_name("text.jsonl")
        assert refused(source=mistyped) == f"{mistyped} does not exist. Did you mean {data}?"

    def test_data_without_a_usable_column_is_refused_with_the_columns_found(self, refused: Any, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "data.jsonl", [{"question": "a", "reply": "b"}])
        message = refused(source=source)
        assert "The data has the columns question, reply, which match no known format." in message
        assert "prompt + completion" in message

    def test_a_broken_line_is_named(self, refused: Any, tmp_path: Path) -> None:
        (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": \n')
        assert f"{tmp_path / 'data.jsonl'}, line 2 is not valid JSON" in refused(source=tmp_path / "data.jsonl")

    def test_data_whose_every_answer_is_cut_off_is_refused(self, refused: Any, tmp_path: Path) -> None:
        rows = ({"prompt": "q" * 50, "completion": "a"} for _ in range(5))
        message = refused(source=write_jsonl(tmp_path / "data.jsonl", rows))
        assert "Every answer is masked out: none of the 5 rows" in message
        assert "--max-length" in message

    def test_chats_need_a_chat_template(self, refused: Any, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        model = tiny_checkpoint(tmp_path / "model", tokenizer=tokenizer)
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        source = write_jsonl(tmp_path / "data.jsonl", [{"messages": turns}])
        assert "has no chat template" in refused(model=model, source=source)


def test_a_run_that_diverges_fails_with_one_line(
    run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
) -> None:
    broken = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.lm_head.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    tiny_tokenizer().save_pretrained(broken)
    finished = run(
        "prune", broken, "--data", data, "-o", out, *QUICK, "--max-skipped-steps", "1", "--eval-sequences", "0"
    )
    assert (finished.code, finished.out) == (1, "")
    assert "Step 1: NaN or Inf in the gradients; the step is skipped." in finished.err
    assert finished.err.splitlines()[-1].startswith("error: NaN or Inf in the gradients of 2 steps in a row")
    assert not out.exists()


class TestInterruption:
    """Ctrl-C as a user presses it, in a process of its own."""

    STEPS = 300

    def quick(self) -> list[str]:
        return [*QUICK[1:], f"--max-steps={self.STEPS}", "--eval-sequences=0"]

    def start(self, folder: Path, checkpoint: Path, data: Path) -> subprocess.Popen[str]:
        arguments = ["prune", str(checkpoint), "--data", str(data), "-o", "out", *self.quick()]
        return subprocess.Popen(
            [sys.executable, "-m", "loraprune", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            # A shell lets what it runs in the background ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def test_ctrl_c_saves_and_resume_finishes(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = self.start(tmp_path, checkpoint, data)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert out == ""
        assert "Traceback" not in err
        message = err.splitlines()[-1]
        assert message.startswith("Stopped at step ")
        assert "--resume" in message
        assert "out.run" in message
        stopped = int(message.split()[3])
        assert 0 < stopped < self.STEPS
        assert [path.name for path in tmp_path.iterdir()] == ["out.run"]

        monkeypatch.chdir(tmp_path)
        again = run("prune", checkpoint, "--data", data, "-o", "out", *QUICK)
        assert again.code == 2
        assert (
            "out.run holds an interrupted run. Continue it with --resume, or start again with --overwrite." in again.err
        )
        assert [path.name for path in tmp_path.iterdir()] == ["out.run"]

        resumed = run("prune", checkpoint, "--data", data, "-o", "out", *self.quick(), "--resume")
        assert resumed.code == 0, resumed.err
        first = next(line for line in resumed.err.splitlines() if line.startswith("step "))
        assert int(first.split()[1].partition("/")[0]) > stopped
        found = record(tmp_path / "out")
        assert found["metrics"]["pruning"]["ratio"] == pytest.approx(0.5, abs=0.01)
        assert found["metrics"]["history"][-1]["step"] == self.STEPS
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
