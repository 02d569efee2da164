from __future__ import annotations

import json
import math
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.checkpoints import CONTEXT, EOS, byte_model, sentences, tiny_checkpoint, tiny_tokenizer, write_jsonl
from tests.cli.conftest import Command
from tests.models import PROJECTIONS
from tests.thinned import thinned
from tests.zoo.process import Checkpoint, load_elsewhere
from transformers import AutoModelForCausalLM

from loraprune.cli.main import main
from loraprune.cli.oneshot import ONESHOT_OPTIONS
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig

LENGTH = 32
QUICK = ["--calibration-sequences=8", f"--max-length={LENGTH}", "--eval-sequences=4", "--no-latency"]
"""Options of a run of a fraction of a second."""


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pruning.json").read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def of_blocks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices that are made sparse."""
    return {name: value for name, value in tensors.items() if name.split(".")[-2] in PROJECTIONS}


def zeros(tensors: dict[str, torch.Tensor]) -> float:
    matrices = of_blocks(tensors).values()
    return sum(int((matrix == 0).sum()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)


def held_out_blocks(count: int = 4) -> torch.Tensor:
    """What the first texts are as blocks of tokens, each text closed by the end-of-text token."""
    tokens = [token for text in sentences(80) for token in [*tiny_tokenizer()(text)["input_ids"], EOS]]
    return torch.tensor(tokens[: count * LENGTH]).view(count, LENGTH)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def oneshot(run: Command, checkpoint: Path, data: Path, out: Path) -> Any:
    """Runs a command that must end well; gives the record of the run."""

    def command(*options: str | Path, model: Path = checkpoint, source: Path | None = data) -> dict[str, Any]:
        given = [] if source is None else ["--data", source]
        finished = run("oneshot", model, *given, "-o", out, *QUICK, *options)
        assert finished.code == 0, finished.err
        return record(out)

    return command


@pytest.fixture
def refused(run: Command, checkpoint: Path, data: Path, out: Path) -> Any:
    """Runs a command that must end with exit code 2 and an error of one line, without anything written."""

    def command(*options: str | Path, model: Path | str = checkpoint, source: Path | str | None = data) -> str:
        before = sorted(out.parent.iterdir())
        given = [] if source is None else ["--data", source]
        finished = run("oneshot", model, *given, "-o", out, *QUICK, *options)
        assert finished.code == 2, finished.err
        assert finished.out == ""
        assert sorted(out.parent.iterdir()) == before
        *_, last = finished.err.splitlines()
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return command


@dataclass(frozen=True)
class EndToEnd:
    """A run, and what its result computes where this package is not installed."""

    arguments: list[str]
    folder: Path
    out: str
    err: str
    logits: torch.Tensor


@pytest.fixture(scope="module")
def runs(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EndToEnd]:
    """A structured and a 2:4 run from end to end."""
    work = tmp_path_factory.mktemp("runs")
    names = {
        "structured": ["--ratio", "0.5", "--allocation", "uniform", "--calibration-sequences", "12"],
        "2:4": ["--sparsity", "2:4"],
    }
    arguments: dict[str, list[str]] = {}
    printed: dict[str, tuple[str, str]] = {}
    for name, options in names.items():
        folder = work / name.replace(":", "-")
        given = ["--data", str(data), "--eval-data", str(data), "-o", str(folder), *QUICK, *options]
        arguments[name] = [str(checkpoint), *given]
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            assert main(["oneshot", *arguments[name]]) == 0
        printed[name] = (out.getvalue(), err.getvalue())
    folders = {name: work / name.replace(":", "-") for name in names}
    assert sorted(work.iterdir()) == sorted(folders.values())
    inputs = {"input_ids": held_out_blocks()}
    checkpoints = [Checkpoint(folder, "AutoModelForCausalLM", True, inputs) for folder in folders.values()]
    logits = load_elsewhere(checkpoints, work)
    return {
        name: EndToEnd(["loraprune", "oneshot", *arguments[name]], folders[name], *printed[name], logits[folders[name]])
        for name in names
    }


@pytest.mark.slow
class TestEndToEnd:
    @pytest.mark.parametrize("name", ["structured", "2:4"])
    def test_the_result_is_shown_and_nothing_is_warned_of(self, runs: dict[str, EndToEnd], name: str) -> None:
        run = runs[name]
        assert f"Checkpoint: {run.folder}\n" in run.out
        assert f"Report:     {run.folder / 'report.html'}\n" in run.out
        assert "Held-out perplexity" in run.out
        assert "warning" not in run.err.lower()
        assert "Traceback" not in run.err
        assert record(run.folder)["command"] == " ".join(run.arguments)

    @pytest.mark.parametrize(("name", "steps"), [("structured", "cutting"), ("2:4", "sparsegpt")])
    def test_the_steps_are_told(self, runs: dict[str, EndToEnd], name: str, steps: str) -> None:
        lines = [line for line in runs[name].err.splitlines() if line.startswith(steps)]
        assert [line.split()[1] for line in lines] == ["0/2", "1/2", "2/2"]
        assert lines[-1] == f"{steps} 2/2  0:00 left"

    @pytest.mark.parametrize("name", ["structured", "2:4"])
    def test_the_perplexity_is_that_of_the_saved_model_without_this_package(
        self, runs: dict[str, EndToEnd], name: str
    ) -> None:
        logits, tokens = runs[name].logits, held_out_blocks()
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        measured = record(runs[name].folder)["metrics"]["pruned"]
        assert measured["perplexity"] == pytest.approx(math.exp(losses.item()), rel=1e-4)
        assert (measured["segment_length"], measured["num_tokens"]) == (LENGTH, 4 * (LENGTH - 1))

    def test_two_of_every_four_weights_of_the_blocks_are_zero_and_the_rest_is_as_it_was(
        self, runs: dict[str, EndToEnd], checkpoint: Path
    ) -> None:
        before, after = weights(checkpoint), weights(runs["2:4"].folder)
        assert before.keys() == after.keys()
        sparse = of_blocks(after)
        assert len(sparse) == 2 * len(PROJECTIONS)
        for name, value in after.items():
            assert value.shape == before[name].shape, name
            if name in sparse:
                assert bool(((value.view(len(value), -1, 4) == 0).sum(-1) == 2).all()), name
            else:
                assert torch.equal(value, before[name]), name

    def test_the_record_has_every_matrix_with_its_zeros(self, runs: dict[str, EndToEnd]) -> None:
        run = runs["2:4"]
        matrices = of_blocks(weights(run.folder))
        found = record(run.folder)["metrics"]["sparsity"]
        assert {f"{matrix['name']}.weight": matrix["zeros"] for matrix in found["matrices"]} == {
            name: int((value == 0).sum()) for name, value in matrices.items()
        }
        assert found["reached"] == found["target"] == 0.5
        assert found["weights"] == sum(value.numel() for value in matrices.values())
        metrics = record(run.folder)["metrics"]
        assert metrics["pruned"]["nonzero"] == sum(int((v != 0).sum()) for v in weights(run.folder).values())
        assert metrics["pruned"]["parameters"] == metrics["dense"]["parameters"]

    def test_half_of_the_heads_and_channels_are_gone(self, runs: dict[str, EndToEnd], checkpoint: Path) -> None:
        before, after = weights(checkpoint), weights(runs["structured"].folder)
        for name, value in after.items():
            kind = name.split(".")[-2]
            side = (1 if kind in ("o_proj", "down_proj") else 0) if kind in PROJECTIONS else None
            shape = [size // 2 if axis == side else size for axis, size in enumerate(before[name].shape)]
            assert list(value.shape) == shape, name
        metrics = record(runs["structured"].folder)["metrics"]
        assert metrics["pruning"]["ratio"] == 0.5
        assert metrics["pruned"]["parameters"] == sum(value.numel() for value in after.values())

    def test_the_card_says_what_became_of_it(self, runs: dict[str, EndToEnd]) -> None:
        card = (runs["2:4"].folder / "README.md").read_text()
        metrics = record(runs["2:4"].folder)["metrics"]
        dense, pruned = metrics["dense"], metrics["pruned"]
        assert re.search("^# .*2:4 sparse$", card, re.MULTILINE)
        assert "\n- sparse\n" in card
        assert f"| weights that are not zero | {dense['nonzero']:,} | {pruned['nonzero']:,} |" in card
        assert f"| {dense['perplexity']:.2f} | {pruned['perplexity']:.2f} |" in card
        assert " ".join(runs["2:4"].arguments) in card
        structured = (runs["structured"].folder / "README.md").read_text()
        assert "Every layer has 2 KV heads, 32 channels." in structured
        assert "not zero" not in structured

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("structured", "50.0 % of the prunable parameters removed"),
            ("2:4", "50.0 % of the weights of the blocks&#39; linear layers set to zero (sparsegpt, 2:4)"),
        ],
    )
    def test_the_report_says_so_too(self, runs: dict[str, EndToEnd], name: str, sentence: str) -> None:
        page = (runs[name].folder / "report.html").read_text()
        assert sentence in page
        assert json.loads((runs[name].folder / "report.json").read_text())["command"] == " ".join(runs[name].arguments)


class TestOptions:
    def test_every_option_of_structured_pruning_reaches_what_it_sets(self, oneshot: Any, out: Path, data: Path) -> None:
        found = oneshot(
            *("--criterion", "flap", "--ratio", "0.4", "--repair", "bias", "--allocation", "balanced", "--cuts", "2"),
            *("--dimensions", "channels", "--channel-multiple", "4", "--head-counts", "any", "--keep-layers", "-1"),
            *("--damping", "0.1", "--calibration-sequences", "5", "--max-length", "24", "--seed", "9", "--offload"),
            *("--norm-steps", "2"),
            *("--eval-data", data, "--eval-sequences", "3", "--prompt", "the old", "--no-report"),
        )
        assert found["settings"]["oneshot"] == {
            "method": "flap",
            "ratio": 0.4,
            "repair": "bias",
            "allocation": "balanced",
            "dimensions": ["channels"],
            "cuts": 2,
            "norm_steps": 2,
            "channel_multiple": 4,
            "widths": None,
            "any_head_count": True,
            "taylor_form": "squared",
            "group_reduction": "sum",
            "offload_grads": False,
            "keep_layers": [-1],
            "damping": 0.1,
            "calibration_sequences": 5,
            "max_length": 24,
            "seed": 9,
            "offload": True,
        }
        first, second = found["metrics"]["pruning"]["widths"]["channels"]
        assert (first % 4, second) == (0, 64)
        assert first < 64
        assert "heads" not in found["metrics"]["pruning"]["widths"]
        assert weights(out)["model.layers.0.mlp.down_proj.bias"].abs().sum() > 0
        pruned = found["metrics"]["pruned"]
        assert (pruned["segment_length"], pruned["num_tokens"]) == (24, 3 * 23)
        assert pruned["completion"]
        assert not (out / "report.html").exists()
        assert "latency_ms" not in pruned

    def test_the_options_of_taylor_reach_it(self, oneshot: Any) -> None:
        found = oneshot(
            *("--criterion", "taylor", "--taylor-form", "second", "--group-reduction", "max", "--offload-grads"),
            *("--ratio", "0.4", "--keep-layers", "50%"),
        )
        settings = found["settings"]["oneshot"]
        assert [settings[name] for name in ("taylor_form", "group_reduction", "offload_grads")] == [
            "second",
            "max",
            True,
        ]
        assert found["metrics"]["pruning"]["widths"]["channels"][0] == 64

    def test_every_option_of_sparse_pruning_reaches_what_it_sets(self, oneshot: Any, out: Path) -> None:
        found = oneshot(
            *("--criterion", "wanda+obs", "--sparsity", "0.25", "--order", "iterative", "--block-size", "16"),
            *("--keep-layers", "0", "--damping", "0.1", "--seed", "9"),
        )
        expected = {"method": "wanda+obs", "sparsity": "0.25", "order": "iterative", "block_size": 16, "damping": 0.1}
        assert found["settings"]["oneshot"].items() >= {**expected, "keep_layers": [0], "seed": 9}.items()
        layers = {"0": {}, "1": {}}
        for name, value in of_blocks(weights(out)).items():
            layers[name.split(".")[2]][name] = value
        assert zeros(layers["0"]) == 0
        assert zeros(layers["1"]) == pytest.approx(0.25, abs=0.01)

    @pytest.mark.full
    def test_the_variant_of_wanda_gives_rows_different_shares(self, oneshot: Any, out: Path) -> None:
        shares = {}
        for option in ("--variant", "--no-variant"):
            found = oneshot("--criterion", "wanda", "--sparsity", "0.5", option, "--overwrite")
            assert found["settings"]["oneshot"]["variant"] is (option == "--variant")
            rows = [(value == 0).float().mean(1) for value in of_blocks(weights(out)).values()]
            shares[option] = torch.cat(rows)
        assert shares["--no-variant"].unique().tolist() == [0.5]
        assert len(shares["--variant"].unique()) > 1

    @pytest.mark.full
    def test_weights_are_compared_within_a_row_or_the_matrix(self, oneshot: Any, out: Path) -> None:
        for within in ("row", "matrix"):
            found = oneshot("--criterion=magnitude", "--sparsity=0.5", "--within", within, "--overwrite")
            assert found["settings"]["oneshot"]["within"] == within
            rows = torch.cat([(value == 0).float().mean(1) for value in of_blocks(weights(out)).values()])
            assert (rows.unique().tolist() == [0.5]) == (within == "row")

    def test_there_is_an_option_for_every_setting(self) -> None:
        found = {name for name, option in ONESHOT_OPTIONS.items() if option.target == "oneshot"}
        assert found == {*OneshotConfig.flat_names(), *SparseConfig.flat_names()}

    @pytest.mark.full
    def test_latency_is_measured_of_what_became_smaller(self, oneshot: Any) -> None:
        assert "latency_ms" in oneshot("--ratio", "0.5", "--latency")["metrics"]["pruned"]

    def test_quiet_prints_results_only(self, run: Command, checkpoint: Path, data: Path, out: Path) -> None:
        finished = run("oneshot", checkpoint, "--data", data, "-o", out, *QUICK, "--sparsity", "0.5", "-q")
        assert (finished.code, finished.err) == (0, "")
        assert "Checkpoint: " in finished.out

    def test_a_parameter_target_is_met_and_the_record_has_the_ratio_that_follows(self, oneshot: Any) -> None:
        found = oneshot("--target-params", "27k")
        assert found["metrics"]["pruned"]["parameters"] == pytest.approx(27_000, abs=96)
        assert found["settings"]["oneshot"]["ratio"] == pytest.approx(found["metrics"]["pruning"]["ratio"], abs=0.01)

    @pytest.mark.full
    def test_a_method_of_one_kind_needs_no_amount(self, oneshot: Any) -> None:
        assert oneshot("--criterion", "sparsegpt")["metrics"]["sparsity"]["target"] == 0.5
        assert oneshot("--criterion", "fisher", "--overwrite")["metrics"]["pruning"]["target_ratio"] == 0.5

    @pytest.mark.parametrize(
        "options",
        thinned([["--sparsity", "0.5"], ["--sparsity", "2:4"], ["--ratio", "0.5", "--repair", "none"]]),
        ids=lambda options: options[1],
    )
    def test_magnitude_needs_no_data(self, oneshot: Any, options: list[str]) -> None:
        found = oneshot("--criterion", "magnitude", *options, source=None)
        metrics = found["metrics"]
        assert metrics.get("sparsity", {}).get("reached", 0.5) == 0.5
        assert metrics.get("pruning", {}).get("ratio", 0.5) == 0.5
        assert "perplexity" not in metrics["pruned"]

    @pytest.mark.full
    def test_magnitude_is_measured_on_eval_data(self, oneshot: Any, data: Path) -> None:
        found = oneshot("--criterion", "magnitude", "--sparsity", "0.5", "--eval-data", data, source=None)
        assert found["metrics"]["pruned"]["num_tokens"] == 4 * (LENGTH - 1)

    def test_overwrite_replaces_what_was_there(self, oneshot: Any, out: Path) -> None:
        out.mkdir()
        (out / "pruning.json").write_text("old")
        (out / "vocab.txt").write_text("old")
        oneshot("--sparsity", "0.5", "--overwrite")
        assert not (out / "vocab.txt").exists()
        assert [path.name for path in out.parent.iterdir()] == ["out"]

    @pytest.mark.full
    def test_a_classifier_of_texts_is_not_a_language_model_but_goes_the_same_way(
        self, run: Command, tmp_path: Path, out: Path
    ) -> None:
        from transformers import LlamaConfig, LlamaForSequenceClassification

        shape = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 260, "num_labels": 2}
        LlamaForSequenceClassification(LlamaConfig(**shape, **heads)).save_pretrained(tmp_path / "model")
        tiny_tokenizer(pad=True).save_pretrained(tmp_path / "model")
        rows = [{"text": text, "label": len(text) % 2} for text in sentences(60)]
        source = write_jsonl(tmp_path / "data.jsonl", rows)
        finished = run("oneshot", tmp_path / "model", "--data", source, "-o", out, *QUICK, "--sparsity", "2:4")
        assert finished.code == 0, finished.err
        assert zeros(weights(out)) == 0.5
        assert "accuracy" in record(out)["metrics"]["pruned"]


class TestRecipe:
    def write(self, tmp_path: Path, **values: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def test_a_recipe_holds_every_option_and_the_command_line_wins(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        path = self.write(
            tmp_path,
            model=str(checkpoint),
            data=str(data),
            output=str(tmp_path / "other"),
            ratio=0.25,
            criterion="wanda",
            keep_layers="0",
            latency=False,
            calibration_sequences=4,
            dimensions=["heads", "channels"],
            **{"max-length": 16},
        )
        finished = run("oneshot", "--config", path, "--ratio", "0.4", "-o", out, "--max_length=24")
        assert finished.code == 0, finished.err
        settings = record(out)["settings"]["oneshot"]
        expected = {"method": "wanda", "ratio": 0.4, "keep_layers": [0], "calibration_sequences": 4, "max_length": 24}
        assert settings.items() >= expected.items()
        assert settings["dimensions"] == ["heads", "channels"]
        assert not (tmp_path / "other").exists()

    def test_an_amount_on_the_command_line_replaces_another_one_in_the_recipe(
        self, oneshot: Any, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, ratio=0.25, criterion="wanda")
        found = oneshot("--config", path, "--sparsity", "2:4")["settings"]["oneshot"]
        assert (found["sparsity"], "ratio" in found) == ("2:4", False)
        found = oneshot("--config", path, "--target-params", "27k", "--overwrite")
        assert found["metrics"]["pruned"]["parameters"] == pytest.approx(27_000, abs=96)
        path = self.write(tmp_path, target_params="27k", criterion="wanda")
        found = oneshot("--config", path, "--ratio", "0.25", "--overwrite")["settings"]["oneshot"]
        assert found["ratio"] == 0.25

    @pytest.mark.parametrize("pattern", thinned(["2:4", "4:8", "16:32", "'2:4'"], 2))
    def test_a_pattern_needs_no_quotes(self, oneshot: Any, tmp_path: Path, pattern: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"sparsity: {pattern}\nmethod: wanda\n")
        assert oneshot("--config", path)["metrics"]["sparsity"]["pattern"] == pattern.strip("'")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sparsty": 0.5}, "The recipe has an unknown option 'sparsty'. Did you mean 'sparsity'?"),
            ({"ratio": "half"}, "The recipe's ratio is 'half': --ratio: 'half' is not a number"),
            ({"ratio": 0.5, "variant": 1}, "The recipe's variant is 1; it must be true or false"),
            ({"ratio": 0.5, "sparsity": 0.5}, "ratio is 0.5 and sparsity is 0.5. "),
            ({"sparsity": 0.5, "target_params": "27k"}, "--target-params and --sparsity both set the amount to remove"),
            ({"ratio": 0.5, "lora_r": 4}, "The recipe has an unknown option 'lora_r'."),
        ],
        ids=str,
    )
    def test_a_wrong_recipe_is_refused(self, refused: Any, tmp_path: Path, values: Any, message: str) -> None:
        assert message in refused("--config", self.write(tmp_path, **values))


class TestWrongInvocation:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "Pass a ratio (removes heads and channels) or a sparsity (sets weights to zero)."),
            (["--criterion", "wanda"], "wanda can do both."),
            (["--ratio", "0"], "ratio is 0; it must lie between 0 and 1"),
            (["--ratio", "1"], "ratio is 1; it must lie between 0 and 1"),
            (["--ratio", "nan"], "ratio is nan; it must lie between 0 and 1"),
            (["--ratio", "-0.5"], "ratio is -0.5; it must lie between 0 and 1"),
            (["--ratio", "half"], "--ratio: 'half' is not a number"),
            (["--ratio", "0.99"], "A ratio of 0.99 would empty a dimension"),
            (["--sparsity", "0"], "The sparsity is 0; it must lie between 0 and 1"),
            (["--sparsity", "1"], "The sparsity is 1; it must lie between 0 and 1"),
            (["--sparsity", "-0.1"], "The sparsity is -0.1; it must lie between 0 and 1"),
            (["--sparsity", "0:4"], "The sparsity is 0:4. Of every M consecutive weights of a row, N become zero"),
            (["--sparsity", "4:4"], "N must be at least 1 and less than M, as in 2:4"),
            (["--sparsity", "5:4"], "N must be at least 1 and less than M, as in 2:4"),
            (["--sparsity", "much"], "The sparsity 'much' is neither a share such as 0.5 nor a pattern such as 2:4"),
            (["--sparsity", "2:"], "The sparsity '2:' is neither a share such as 0.5 nor a pattern such as 2:4"),
            (["--sparsity", "2:5"], "model.layers.0.self_attn.q_proj has 32 inputs, which is not a multiple of 5"),
            (["--sparsity", "2:64"], "model.layers.0.self_attn.q_proj has 32 inputs, which is not a multiple of 64"),
            (["--sparsity", "0.0001"], "A sparsity of 0.0001 removes nothing from model.layers.0.self_attn.q_proj"),
            (["--sparsity", "2:4", "--ratio", "0.5"], "ratio is 0.5 and sparsity is 2:4. "),
            (["--ratio", "0.5", "--target-params", "27k"], "--ratio and --target-params both set the amount to remove"),
            (["--target-params", "5M"], "A target of 5,000,000 parameters cannot be met"),
            (["--target-params", "lots"], "'lots' is not a parameter count; write 4.5B"),
            (
                ["--ratio", "0.5", "--criterion", "wnada"],
                "There is no criterion 'wnada'; choose one of osscar, fisher, ",
            ),
            (["--ratio", "0.5", "--criterion", "sparsegpt"], "weights become zero. Pass a sparsity"),
            (["--sparsity", "0.5", "--criterion", "osscar"], "heads and channels are removed. Pass a ratio"),
            (
                ["--sparsity", "0.5", "--repair", "bias"],
                "repair is an option for removing heads and channels (--ratio)",
            ),
            (["--ratio", "0.5", "--variant"], "variant is an option for setting weights to zero"),
            (
                ["--sparsity", "2:4", "--criterion", "wanda", "--variant"],
                "variant is an option of wanda for a sparsity",
            ),
            (["--sparsity", "0.5", "--order", "iterative"], "order is an option of the criterion 'wanda+obs' or"),
            (
                ["--sparsity", "0.5", "--criterion", "wanda", "--block-size", "8"],
                "block_size is an option of the criterion 'sparsegpt',",
            ),
            (["--ratio", "0.5", "--repair", "biass"], "There is no repair 'biass'; choose one of "),
            (["--ratio", "0.5", "--allocation", "equal"], "--allocation: 'equal' is not one of"),
            (["--criterion", "wanda+obs", "--order", "first"], "--order: 'first' is not one of"),
            (["--ratio", "0.5", "--dimensions", "chanels"], "no dimensions of kind 'chanels'; it has heads, "),
            (["--ratio", "0.5", "--channel-multiple", "100"], "Choose --channel-multiple between 1 and 64"),
            (["--ratio", "0.5", "--cuts", "-1"], "cuts is -1; it must lie in [1, 1000000]"),
            (["--sparsity", "0.5", "--block-size", "0"], "block_size is 0; it must be at least 1"),
            (
                ["--sparsity", "0.5", "--calibration-sequences", "-1"],
                "calibration_sequences is -1; it must lie in [1, 1000000]",
            ),
            (["--sparsity", "0.5", "--eval-sequences", "-1"], "eval_sequences is -1; it must be at least 0"),
            (["--sparsity", "0.5", "--damping", "-1"], "damping is -1.0; it must lie in [0, 1)"),
            (["--sparsity", "0.5", "--keep-layers", "2"], "There is no layer 2 to keep: the model has layers 0 to 1"),
            (["--sparsity", "0.5", "--keep-layers", "0,1"], "All layers would be kept, so nothing could be pruned"),
            (["--sparsity", "0.5", "--max-length", "1"], "max_length is 1; sequences need at least 2 tokens"),
            (["--ratio", "0.5", "--max-length", str(CONTEXT + 1)], f"longer than the model's context of {CONTEXT}"),
            (["--sparsity", "0.5", "--format", "semi-structured"], "--format semi-structured needs --sparsity 2:4"),
            (["--ratio", "0.5", "--format", "compressed-tensors"], "--format compressed-tensors needs --sparsity 2:4"),
            (["--sparsity", "2:4", "--format", "sparse"], "--format: 'sparse' is not one of"),
            (["--sparsty", "0.5"], "unrecognized arguments: --sparsty 0.5; did you mean --sparsity?"),
            (["--sparsity=0.5", "--criterio=wanda"], "did you mean --criterion?"),
            (["--sparsity", "0.5", "other"], "unrecognized arguments: other"),
            (["--sparsity", "0.5", "--eval-data", "missing.jsonl"], "missing.jsonl does not exist."),
            (["--sparsity", "0.5", "--config", "missing.yaml"], "The recipe missing.yaml does not exist."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_option_is_refused_with_the_way_out(self, refused: Any, options: list[str], message: str) -> None:
        assert message in refused(*options)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="the machine may have what is asked for")
    def test_semi_structured_tensors_are_refused_where_the_machine_has_none(self, refused: Any) -> None:
        assert "Semi-structured tensors need a CUDA device" in refused("--sparsity", "2:4", "--format=semi-structured")

    def test_weights_of_32_bits_are_refused_before_the_run_where_the_hardware_is(
        self, refused: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from loraprune.checkpoint.exports import semi_structured

        check = semi_structured.check_semi_structured
        monkeypatch.setattr(
            semi_structured, "check_semi_structured", lambda dtype=None: check(dtype=dtype) if dtype else None
        )
        assert "the weights are float32" in refused("--sparsity", "2:4", "--format=semi-structured")

    def test_a_2_4_result_is_written_in_the_layout_of_compressed_tensors_too(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
        out = tmp_path / "out"
        arguments = ("--sparsity", "2:4", "--criterion", "magnitude", "--format", "compressed-tensors", "-o", out)
        finished = run("oneshot", checkpoint, "--data", data, *arguments)
        assert finished.code == 0, finished.err
        config = json.loads((tmp_path / "out-compressed-tensors" / "config.json").read_text())
        assert config["quantization_config"]["sparsity_config"]["format"] == "sparse-24-bitmask"
        assert (out / "model.safetensors").is_file()

    def test_a_pattern_is_checked_against_every_layer(self, refused: Any, tmp_path: Path) -> None:
        model = tiny_checkpoint(tmp_path / "model", intermediate_size=44)
        message = refused("--sparsity", "4:8", model=model)
        assert "model.layers.0.mlp.down_proj has 44 inputs, which is not a multiple of 8" in message
        assert "or a sparsity without a pattern, such as 0.5." in message

    @pytest.mark.parametrize("family", ["mistral", "qwen2"])
    def test_a_bias_that_the_config_cannot_say_is_refused(self, refused: Any, tmp_path: Path, family: str) -> None:
        model = tiny_checkpoint(tmp_path / "model", family)
        message = refused("--ratio", "0.5", "--repair", "bias", model=model)
        assert "needs a bias on model.layers.0.self_attn.o_proj" in message
        assert "Choose --repair refit or none" in message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--sparsity", "0.5"],
                "The criterion sparsegpt needs calibration data. Pass --data",
            ),
            (
                ["--ratio", "0.5"],
                "The criterion osscar needs calibration data. Pass --data DATA.",
            ),
            (["--ratio", "0.5", "--criterion", "magnitude"], "Pass --data DATA, or --repair none."),
        ],
    )
    def test_missing_data_are_asked_for_by_what_looks_at_them(
        self, refused: Any, options: list[str], message: str
    ) -> None:
        assert message in refused(*options, source=None)

    @pytest.mark.parametrize(
        ("left_out", "message"),
        [
            (
                "model",
                "The model is missing. Name a checkpoint: loraprune oneshot MODEL --data DATA --ratio 0.5 -o OUT.",
            ),
            ("-o", "The output is missing. Name the folder of the result with -o."),
        ],
    )
    def test_what_is_needed_and_missing_is_named(
        self, run: Command, checkpoint: Path, data: Path, out: Path, left_out: str, message: str
    ) -> None:
        parts = {"model": [checkpoint], "--data": ["--data", data], "-o": ["-o", out], "--ratio": ["--ratio", "0.5"]}
        del parts[left_out]
        finished = run("oneshot", *(word for words in parts.values() for word in words))
        assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
        assert not out.exists()

    def test_an_output_that_holds_something_is_refused_and_untouched(self, refused: Any, out: Path) -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        message = f"{out} exists and is not empty. Choose another folder, or pass --overwrite (overwrite=True)."
        assert refused("--sparsity", "0.5") == message
        assert (out / "mine.txt").read_text() == "mine"

    def test_without_arguments_the_usage_is_shown(self, run: Command) -> None:
        finished = run("oneshot")
        assert finished.code == 2
        assert "usage: loraprune oneshot MODEL" in finished.err

    def test_help_lists_every_option(self, run: Command) -> None:
        finished = run("oneshot", "--help-all")
        assert finished.code == 0
        for option in ONESHOT_OPTIONS.values():
            assert option.flag in finished.out


class TestWrongInput:
    def test_a_missing_model_is_named(self, refused: Any, tmp_path: Path) -> None:
        message = refused("--sparsity", "0.5", model=tmp_path / "none")
        assert f"{tmp_path / 'none'} is not a checkpoint: it has no config.json" in message

    def test_an_unknown_architecture_is_named(self, refused: Any, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text('{"model_type": "ctrl"}')
        assert "'ctrl' are not supported" in refused("--sparsity", "0.5", model=tmp_path / "model")

    def test_a_model_without_tokenizer_is_refused_with_the_way_out(self, refused: Any, tmp_path: Path) -> None:
        byte_model().save_pretrained(tmp_path / "model")
        message = refused("--sparsity", "0.5", model=tmp_path / "model")
        assert "Name a checkpoint that has one with --tokenizer." in message

    def test_missing_data_files_are_named(self, refused: Any, data: Path) -> None:
        mistyped = data.with_name("text.jsonl")
        assert refused("--ratio=0.5", source=mistyped) == f"{mistyped} does not exist. Did you mean {data}?"

    def test_an_empty_file_is_refused(self, refused: Any, tmp_path: Path) -> None:
        (tmp_path / "data.jsonl").write_text("")
        assert "is empty: it holds no rows" in refused("--ratio=0.5", source=tmp_path / "data.jsonl")

    def test_data_without_a_usable_column_is_refused(self, refused: Any, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "data.jsonl", [{"question": "a", "reply": "b"}])
        assert "The data has the columns question, reply, which match no" in refused("--ratio=0.5", source=source)

    def test_few_tokens_are_warned_of_and_the_damping_is_raised(
        self, run: Command, checkpoint: Path, tmp_path: Path, out: Path
    ) -> None:
        source = write_jsonl(tmp_path / "data.jsonl", [{"text": "abcdefgh"}])
        finished = run("oneshot", checkpoint, "--data", source, "-o", out, *QUICK, "--sparsity", "0.5")
        assert finished.code == 0, finished.err
        assert "9 calibration tokens are fewer than" in " ".join(finished.err.split())
        assert "too short to hold out rows: held-out perplexity is not measured" in finished.err
        assert zeros(weights(out)) == pytest.approx(0.5, abs=0.001)
        damping = {matrix["damping"] for matrix in record(out)["metrics"]["sparsity"]["matrices"]}
        assert min(damping) > record(out)["settings"]["oneshot"]["damping"]

    def test_a_model_that_makes_nan_fails_with_one_line(
        self, run: Command, tmp_path: Path, checkpoint: Path, data: Path, out: Path
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        model.model.embed_tokens.weight.data.fill_(float("nan"))
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        finished = run("oneshot", tmp_path / "model", "--data", data, "-o", out, *QUICK, "--sparsity", "0.5")
        assert (finished.code, finished.out) == (1, "")
        assert finished.err.splitlines()[-1].startswith("error: The calibration data produce NaN or Inf")
        assert not out.exists()
