"""Results that nobody wants are not written: cuts that were not made, models that know no more than chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import write_texts
from tests.finished_run import QUICK
from tests.pruning.runs import Poison
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune import BadResultError, OneshotConfig, PruneResult, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.cli.main import main
from loraprune.data.demo import demo_model, standard_library_text

TRAINING = {**QUICK, "max_steps": 4, "max_length": 64, "per_device_train_batch_size": 2}
CONFIG = PruningConfig(ratio=0.2, repair="none", cuts=1, max_skipped_steps=9)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo model was trained on, a little of it."""
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    rows = [json.dumps({"text": text[:600]}) for text in standard_library_text()[0][:60]]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def pruned(source: Any, data: Path, output: Path, *callbacks: Any, rate: float = 1e-4, **options: Any) -> PruneResult:
    given = RunOptions(output=output, eval_sequences=4, latency=False, report=False, **options)
    return prune(
        str(source),
        data,
        CONFIG,
        training={**TRAINING, "learning_rate": rate, "save_steps": 1},
        options=given,
        callbacks=callbacks,
    )


@pytest.mark.filterwarnings("ignore:Step", "ignore:Training ended")
def test_cuts_that_were_not_made_are_an_error(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadResultError, match=r"1 of 1 cuts were not made \(4 of 4 steps were skipped for NaN or Inf\)"):
        pruned(checkpoint, data, out, _First(range(1, 5)))
    assert not out.exists()
    result = pruned(checkpoint, data, out, _First(range(1, 5)), allow_bad_result=True)
    assert (out / "model.safetensors").is_file()
    assert any("cuts were not made" in note for note in result.report.notes)
    assert not any("FFN widths" in note for note in result.report.notes)


class _First(Poison):
    """Stands before the callback that prunes."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing: it would come too late."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 in self.steps:
            parameter = next(p for p in kwargs["model"].parameters() if p.requires_grad)
            parameter.register_hook(lambda gradient: gradient * self.value)


def test_a_learning_rate_that_kills_the_model_is_an_error_and_the_state_is_kept(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadResultError, match=r"uniform guess among 4,096.*--resume --allow-bad-result"):
        pruned(demo_model(), text, out, rate=1e3)
    assert not out.exists()
    assert [path.name for path in (tmp_path / "out.run").glob("checkpoint-*")] != []
    pruned(demo_model(), text, out, rate=1e3, resume=True, allow_bad_result=True)
    assert (out / "model.safetensors").is_file()


def test_so_it_is_in_a_recovery_and_a_good_one_goes_through(text: Path, tmp_path: Path) -> None:
    options: Any = {"eval_sequences": 4, "latency": False, "report": False}
    with pytest.raises(BadResultError, match="uniform guess"):
        recover(
            str(demo_model()),
            text,
            training={**TRAINING, "learning_rate": 1e3},
            options=RunOptions(output=tmp_path / "bad", **options),
        )
    assert not (tmp_path / "bad").exists()
    recover(str(demo_model()), text, training=TRAINING, options=RunOptions(output=tmp_path / "good", **options))
    assert (tmp_path / "good" / "model.safetensors").is_file()


def test_a_dead_result_of_a_cut_without_training_is_an_error(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: Any = {"output": out, "eval_sequences": 4, "latency": False, "report": False}
    config = OneshotConfig(sparsity=0.999, criterion="magnitude")
    with pytest.raises(BadResultError, match=r"no better than a uniform guess.*--allow-bad-result keeps"):
        oneshot(str(demo_model()), text, config, options=RunOptions(**options))
    assert not out.exists()
    oneshot(str(demo_model()), text, config, options=RunOptions(**options, allow_bad_result=True))
    assert (out / "model.safetensors").is_file()


def test_a_model_that_knew_nothing_before_may_know_nothing_afterwards(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    for parameter in model.model.embed_tokens.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(demo_model()).save_pretrained(tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    options = RunOptions(output=tmp_path / "out", eval_sequences=4, latency=False, report=False)
    oneshot(str(tmp_path / "model"), data, OneshotConfig(ratio=0.2, criterion="magnitude"), options=options)


def test_the_command_ends_with_code_1(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["oneshot", str(demo_model()), "--data", str(text), "-o", str(out), "--sparsity", "0.999"]
    assert main([*command, "--criterion", "magnitude", "--eval-sequences", "4", "--quiet"]) == 1
    assert "uniform guess" in capsys.readouterr().err
    assert not out.exists()
