from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.checkpoints import tiny_checkpoint
from tests.cli.conftest import QUICK as PRUNING
from tests.cli.conftest import Command
from tests.recipes.test_recover import CtrlC
from transformers import AutoModelForCausalLM

from loraprune import RunOptions, recover
from loraprune.cli import prune as prune_command
from loraprune.cli import recover as recover_command
from loraprune.pruning.errors import InterruptedRunError

QUICK = ["--max-steps=6", "--max-length=32", "--per-device-train-batch-size=4", "--learning-rate=1e-2"]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pruning.json").read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: p.detach() for name, p in model.named_parameters()}


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in weights(folder).items() if "proj" in name}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def sparse(run: Command, checkpoint: Path, tmp_path: Path) -> Path:
    """What ``loraprune oneshot`` makes of the checkpoint."""
    folder = tmp_path / "tiny-sparse"
    finished = run("oneshot", checkpoint, "--criterion", "magnitude", "--sparsity", "2:4", "-o", folder, "-q")
    assert finished.code == 0, finished.err
    return folder


@pytest.fixture
def refused(run: Command, checkpoint: Path, data: Path, out: Path) -> Any:
    """Runs a command that must end with exit code 2 and an error of one line, without anything written."""

    def command(*options: str | Path) -> str:
        before = sorted(out.parent.iterdir())
        finished = run("recover", checkpoint, "--data", data, "-o", out, *QUICK, *options)
        assert (finished.code, finished.out) == (2, ""), finished.err
        assert sorted(out.parent.iterdir()) == before
        *_, last = finished.err.splitlines()
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return command


class TestRun:
    def test_a_sparse_checkpoint_is_tuned_and_stays_sparse(
        self, run: Command, sparse: Path, data: Path, out: Path
    ) -> None:
        finished = run("recover", sparse, "--data", data, "-o", out, *QUICK)
        assert finished.code == 0, finished.err
        assert same(zeros(out), zeros(sparse))
        assert {float(mask.float().mean()) for mask in zeros(out).values()} == {0.5}
        assert not same(weights(out), weights(sparse))
        found = record(out)
        assert found["command"] == " ".join(
            ["loraprune recover", str(sparse), "--data", str(data), "-o", str(out), *QUICK]
        )
        before, after = found["metrics"]["dense"]["perplexity"], found["metrics"]["pruned"]["perplexity"]
        assert 0 < after < before
        assert found["base_pruning"]["pattern"] == "2:4"
        assert "warning" not in finished.err
        assert "50 % of the weights of the blocks' linear layers are zero, and they stay zero" in finished.err

    def test_what_is_printed_speaks_of_before_and_after(
        self, run: Command, sparse: Path, data: Path, out: Path
    ) -> None:
        finished = run("recover", sparse, "--data", data, "-o", out, *QUICK, "--prompt", "the old river")
        assert finished.code == 0, finished.err
        head, *_ = (line for line in finished.out.splitlines() if "change" in line)
        assert head.split() == ["before", "after", "change"]
        (nonzero,) = (line for line in finished.out.splitlines() if "Weights that are not zero" in line)
        assert nonzero.endswith("unchanged ")
        assert f"Checkpoint: {out}\n" in finished.out
        assert "\nbefore\n" in finished.out
        assert "\nafter\n" in finished.out
        for text in (finished.out, finished.err):
            assert "pruned" not in text
            assert "dense" not in text
        steps = [line for line in finished.err.splitlines() if line.startswith("step ")]
        assert [line.split()[1] for line in steps] == [f"{step}/6" for step in range(1, 7)]

    def test_zeros_are_given_up_on_request_with_a_warning(
        self, run: Command, sparse: Path, data: Path, out: Path
    ) -> None:
        finished = run("recover", sparse, "--data", data, "-o", out, *QUICK, "--no-keep-zeros", "-q")
        assert finished.code == 0, finished.err
        (warning,) = finished.err.splitlines()
        assert warning.startswith("warning: 50 % of the weights of the blocks' linear layers are zero")
        assert "Leave out --no-keep-zeros" in warning
        assert record(out)["metrics"]["sparsity"]["after"]["share"] == 0.0

    def test_pruning_a_sparse_checkpoint_names_this_command(
        self, run: Command, sparse: Path, data: Path, out: Path
    ) -> None:
        finished = run("prune", sparse, "--data", data, "-o", out, *PRUNING, "-q")
        assert finished.code == 0, finished.err
        assert "`loraprune recover` tunes a sparse model and keeps its zeros." in finished.err
        assert record(out)["base_pruning"]["method"] == "magnitude"

    def test_a_structurally_pruned_checkpoint_is_tuned(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path, out: Path
    ) -> None:
        pruned = tmp_path / "pruned"
        assert run("prune", checkpoint, "--data", data, "-o", pruned, *PRUNING, "-q").code == 0
        finished = run("recover", pruned, "--data", data, "-o", out, *QUICK)
        assert finished.code == 0, finished.err
        assert {name: w.shape for name, w in weights(out).items()} == {n: w.shape for n, w in weights(pruned).items()}
        assert "zero" not in finished.out + finished.err
        assert record(out)["base_pruning"]["ratio"] == pytest.approx(0.5, abs=0.01)

    def test_an_interrupted_run_is_resumed(
        self, run: Command, sparse: Path, data: Path, tmp_path: Path, out: Path
    ) -> None:
        training = {
            "max_steps": 6,
            "max_length": 32,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
        }
        with pytest.raises(InterruptedRunError):
            recover(sparse, data, training=training, options=RunOptions(output=out), callbacks=[CtrlC(3)])
        assert "holds an interrupted run" in run("recover", sparse, "--data", data, "-o", out, *QUICK).err
        assert (
            "--keep-zeros"
            in run("recover", sparse, "--data", data, "-o", out, *QUICK, "--resume", "--no-keep-zeros").err
        )
        resumed = run("recover", sparse, "--data", data, "-o", out, *QUICK, "--resume")
        assert resumed.code == 0, resumed.err
        whole = run("recover", sparse, "--data", data, "-o", tmp_path / "whole", *QUICK)
        assert whole.code == 0, whole.err
        assert same(weights(out), weights(tmp_path / "whole"))

    def test_every_option_reaches_what_it_sets(self, run: Command, sparse: Path, data: Path, out: Path) -> None:
        finished = run(
            *("recover", sparse, "--data", data, "-o", out, *QUICK, "--keep-zeros", "--max-skipped-steps", "3"),
            *("--lora-r", "2", "--lora-alpha", "5", "--lora-dropout", "0.1", "--seed", "9", "--eval-sequences", "2"),
            *("--lora-target-modules", "q_proj", "down_proj", "--no-report", "--save-adapter", "--keep-run"),
        )
        assert finished.code == 0, finished.err
        settings = record(out)["settings"]
        assert settings["recovery"] == {"keep_zeros": True, "max_skipped_steps": 3}
        assert (settings["lora"]["r"], settings["lora"]["alpha"], settings["lora"]["dropout"]) == (2, 5, 0.1)
        assert settings["lora"]["target_modules"] == ["down_proj", "q_proj"]
        assert (settings["training"]["seed"], settings["training"]["learning_rate"]) == (9, 1e-2)
        assert not (out / "report.html").exists()
        assert (out / "adapter" / "adapter_model.safetensors").is_file()
        assert out.with_name("out.run").is_dir()
        assert same(zeros(out), zeros(sparse))

    def test_a_recipe_holds_every_option_and_the_command_line_wins(
        self, run: Command, sparse: Path, data: Path, tmp_path: Path, out: Path
    ) -> None:
        path = tmp_path / "recipe.yaml"
        values = {"model": str(sparse), "data": str(data), "keep_zeros": False, "max_steps": 9, "max_length": 32}
        path.write_text(yaml.safe_dump(values))
        finished = run("recover", "--config", path, "-o", out, "--max_steps", "2", "--keep-zeros")
        assert finished.code == 0, finished.err
        assert record(out)["settings"]["training"]["max_steps"] == 2
        assert same(zeros(out), zeros(sparse))


class TestWrongInvocation:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max-stepz", "3"], "unrecognized arguments: --max-stepz 3; did you mean --max-steps?"),
            (["--keep-zeroes"], "did you mean --keep-zeros? (loraprune recover --help lists the options)"),
            (["--ratio", "0.5"], "unrecognized arguments: --ratio 0.5"),
            (["--packing"], "--packing is not an option of this command"),
            (["--resume-from-checkpoint", "x"], "Say --resume."),
            (["--resume"], "There is nothing to resume: "),
            (["--lora-r", "0"], "lora_r is 0; it must be at least 1"),
            (["--lora-target-modules", "query"], "LoRA cannot adapt query: the layers of the blocks are down_proj"),
            (["--max-skipped-steps", "-1"], "max_skipped_steps is -1; it must be at least 0."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_option_is_refused_with_the_way_out(self, refused: Any, options: list[str], message: str) -> None:
        assert message in refused(*options)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"keep_zeroes": True}, "The recipe has an unknown option 'keep_zeroes'. Did you mean 'keep_zeros'?"),
            ({"keep_zeros": "yes please"}, "The recipe's keep_zeros is 'yes please'; it must be true or false"),
            ({"ratio": 0.5}, "The recipe has an unknown option 'ratio'."),
        ],
        ids=str,
    )
    def test_a_wrong_recipe_is_refused(self, refused: Any, tmp_path: Path, values: Any, message: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        assert message in refused("--config", path)

    @pytest.mark.parametrize("left_out", ["model", "data", "output"])
    def test_what_is_needed_and_missing_is_named(
        self, run: Command, checkpoint: Path, data: Path, out: Path, left_out: str
    ) -> None:
        parts = {"model": [checkpoint], "data": ["--data", data], "output": ["-o", out]}
        del parts[left_out]
        finished = run("recover", *(word for words in parts.values() for word in words))
        assert (finished.code, finished.out) == (2, "")
        assert finished.err.startswith(f"error: The {left_out} is missing. ")
        assert not out.exists()

    def test_a_quantized_or_unknown_checkpoint_is_refused(self, run: Command, tmp_path: Path, data: Path) -> None:
        folder = tiny_checkpoint(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config))
        finished = run("recover", folder, "--data", data, "-o", tmp_path / "out")
        assert finished.code == 2
        assert "is quantized" in finished.err


def test_help_shows_the_options_of_this_command_and_none_of_pruning(run: Command) -> None:
    finished = run("recover", "--help-all")
    assert finished.code == 0
    assert "usage: loraprune recover MODEL --data DATA -o OUT [options]" in finished.out
    assert "Zero weights stay zero" in " ".join(finished.out.split())
    own, others = set(recover_command.RECOVER_OPTIONS), set(prune_command.PRUNE_OPTIONS)
    assert all(option.flag in finished.out for option in recover_command.RECOVER_OPTIONS.values())
    assert own - others == {"keep_zeros"}
    assert not any(f"{prune_command.PRUNE_OPTIONS[name].flag} " in finished.out for name in others - own)


def test_both_commands_say_the_same_of_what_they_share() -> None:
    differing = {
        name
        for name, option in recover_command.RECOVER_OPTIONS.items()
        if name in prune_command.PRUNE_OPTIONS and prune_command.PRUNE_OPTIONS[name].help != option.help
    }
    assert differing == {"output", "save_adapter"}
