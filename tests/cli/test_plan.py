from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.models import tiny_config

from loraprune.checkpoint.names import PRESETS
from loraprune.cli.options import OLD_OPTIONS
from loraprune.cli.plan import plan_parser
from loraprune.cli.prune import PRUNE_OPTIONS

NOT_OF_PRUNE = {"json", "device", "help", "help_all", "dtype", "ratio", "gpus", "nodes", "strategy", "node_bandwidth",
                "network_bandwidth"}  # fmt: skip
"""Options that a run does not have, or has for one value."""


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_config("llama", num_hidden_layers=4).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_one_screen_says_what_goes_what_it_takes_and_where_it_fits(
    run: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run("plan", model, "--ratio", "0.5", "--batch-size", "2")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    for words in ("KV heads", "FFN channels", "KV cache for 1,000 tokens", "weights of the base", "peak of a step",
                  "peak of the first cut", "H100 80 GB", "Estimates for full rows."):  # fmt: skip
        assert words in done.out
    tables = [line for line in lines if not line.endswith((".", "off", "on"))]
    assert max(map(len, tables)) <= 80
    assert len(lines) < 50


def test_several_ratios_stand_beside_each_other(run: Command, model: str) -> None:
    done = run("plan", model, "--ratio", "0.25", "0.5", "--json")
    assert done.code == 0, done.err
    low, high = json.loads(done.out)
    assert (low["asked"], high["asked"]) == (0.25, 0.5)
    assert low["after"]["parameters"] > high["after"]["parameters"]


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ((), "transformers >= 4.57 (as it is)", "vLLM (as it is)"),
        (("--allocation", "global"), "transformers >= 4.57 (with trust_remote_code=True", "vLLM: no, its config"),
        (("--keep-layers", "0"), "transformers >= 4.57 (with trust_remote_code=True", "vLLM: no, its config"),
    ],
)
def test_it_says_what_will_load_the_result(
    run: Command, model: str, words: tuple[str, ...], first: str, second: str
) -> None:
    done = run("plan", model, "--ratio", "0.4", *words)
    assert done.code == 0, done.err
    assert f"Loads in:   {first}" in done.out
    assert f"\n            {second}" in done.out
    (found,) = json.loads(run("plan", model, "--ratio", "0.4", *words, "--json").out)
    assert [text.startswith(start) for text, start in zip(found["loads_in"], (first, second), strict=False)] == [
        True
    ] * 2


def test_several_gpus_are_told_apart_and_the_choice_of_a_strategy_is_explained(
    run: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run("plan", model, "--ratio", "0.5", "--gpus", "4", "--nodes", "2", "--batch-size", "2")
    assert done.code == 0, done.err
    for words in (
        "On 2 nodes of 4 GPUs",
        "copy for averaging gradients",
        "gradients of the adapter",
        "ddp (one GPU holds the whole run",
        "seconds of a step",
        "speed-up",
        "Nothing was measured",
    ):
        assert words in done.out
    tables = [line for line in done.out.splitlines() if not line.endswith((".", "off", "on"))]
    assert max(map(len, tables)) <= 80


@pytest.mark.full
def test_json_says_what_several_gpus_hold_and_send(run: Command, model: str) -> None:
    words = ("plan", model, "--json", "--max-length", "64")
    alone, low = json.loads(run(*words).out)[0], json.loads(run(*words, "--gpus", "2", "--strategy", "fsdp2").out)[0]
    several = low.pop("several_gpus")
    assert low == alone
    assert (several["gpus"], several["nodes"], several["tokens"]) == (2, 1, 2 * 8 * 64)
    for kind in several["kinds"]:
        fit = kind["fit"]
        assert (fit["strategy"], fit["fits"]) == ("fsdp2", True)
        assert fit["memory"]["base"] < alone["memory"]["weights"] or fit["dtype"] == "float32"
        assert fit["traffic"]["total"] == sum(fit["traffic"][name] for name in ("base", "gradients", "evidence"))
        assert kind["oneshot"]["speed_up"] < kind["oneshot"]["limit"]


def test_json_goes_to_a_file_too(run: Command, model: str, tmp_path: Path) -> None:
    done = run("plan", model, "--load-in-4bit", "-o", str(tmp_path / "plan.json"))
    assert done.code == 0, done.err
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert found["settings"]["quantization"] == "bnb-4bit"
    assert found["memory"]["weights"] < found["before"]["file_bytes"]


def test_switches_can_be_switched_off(run: Command, model: str) -> None:
    words = ("--no-gradient-checkpointing", "--repair", "none", "--no-bf16", "--criterion", "lora", "--json")
    (found,) = json.loads(run("plan", model, *words).out)
    assert found["settings"]["gradient_checkpointing"] is False
    assert found["settings"]["bf16"] is False
    assert found["memory"]["cut"] == 0


def test_options_are_called_as_those_of_prune() -> None:
    training = {"per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "gradient_checkpointing",
                "bf16"}  # fmt: skip
    for action in plan_parser()._actions:
        name = max(action.option_strings, key=len, default="--model").removeprefix("--").replace("-", "_")
        name = name.removeprefix("no_")
        assert name in {*PRUNE_OPTIONS, *training, *NOT_OF_PRUNE, *OLD_OPTIONS, "model"}, name


def test_help_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan_parser().parse_args(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ratio", "1.5"), "--ratio is 1.5; it must lie between 0 and 1"),
        (("--ratio", "0"), "--ratio is 0; it must lie between 0 and 1"),
        (("--ratio", "0.5", "--target-params", "1K"), "both set the amount to remove"),
        (("--load-in-8bit", "--load-in-4bit"), "bnb-4bit and bnb-8bit were given"),
        (("--criterion", "fischer"), "There is no criterion 'fischer'"),
        (("--lora-target-modules", "wq"), "LoRA cannot adapt wq"),
        (("--lora-r", "0"), "lora_r is 0"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("-o", "no/such/folder/plan.json"), "does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Command, model: str, words: tuple[str, ...], message: str) -> None:
    done = run("plan", model, *words)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not done.out


def test_a_folder_that_is_no_checkpoint_is_told(run: Command, tmp_path: Path) -> None:
    done = run("plan", str(tmp_path))
    assert done.code == 2
    assert "is not a checkpoint" in done.err
