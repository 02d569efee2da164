"""What can be done with what a run gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.finished_run import CONFIG, QUICK
from tests.hub_server import TOKEN, StandInHub
from trl import SFTConfig

import loraprune
from loraprune import OneshotConfig, OutputExistsError, PruneResult, RunOptions, oneshot, prune
from loraprune.recipes.steps import push

CUT = OneshotConfig(criterion="magnitude", ratio=0.3, repair="none")


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_result_without_a_folder_is_saved_later_as_a_run_would_have(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"eval_sequences": 4, "latency": False}
    asked = prune(checkpoint, data, CONFIG, training=QUICK, options=RunOptions(output=tmp_path / "asked", **options))
    result = prune(checkpoint, data, CONFIG, training=QUICK, options=RunOptions(**options))
    assert result.output is None
    assert result.save_pretrained(str(tmp_path / "later")) == tmp_path / "later"
    assert files_of(tmp_path / "later") == files_of(tmp_path / "asked")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("later", "asked"))
    assert one == other
    record = json.loads((tmp_path / "later" / "pruning.json").read_text())
    assert record["plan"] == asked.plan.to_json()
    assert (tmp_path / "later" / "README.md").read_text().startswith("---")
    loaded = loraprune.load(tmp_path / "later").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in result.model.state_dict().items())


def test_an_existing_folder_is_replaced_only_when_asked_for(finished: PruneResult, tmp_path: Path) -> None:
    (tmp_path / "pruning.json").write_text("important")
    (tmp_path / "plan.json").write_text("important")
    with pytest.raises(OutputExistsError, match="not empty"):
        finished.save_pretrained(tmp_path)
    assert files_of(tmp_path) == {"plan.json", "pruning.json"}
    finished.save_pretrained(tmp_path, overwrite=True, report=False)
    assert "config.json" in files_of(tmp_path)
    assert not {"plan.json", "report.html"} & files_of(tmp_path)


def test_a_result_is_published_in_one_commit(checkpoint: Path, own_hub: StandInHub) -> None:
    result = oneshot(checkpoint, config=CUT, options=RunOptions(eval_sequences=0, latency=False))
    address = result.push_to_hub("smaller", private=True, token=TOKEN)
    assert address.startswith(f"{own_hub.endpoint}/me/smaller/commit/")
    assert own_hub.private == {"me/smaller"}
    assert len(own_hub.branches) == 1
    files = own_hub.files["me/smaller"]
    assert files.keys() >= {"config.json", "model.safetensors", "pruning.json", "README.md", "tokenizer.json"}


class TestAPushAtTheEnd:
    """``RunOptions(push_to_hub=NAME)``."""

    def options(self, tmp_path: Path, **further: Any) -> RunOptions:
        return RunOptions(output=tmp_path / "out", push_to_hub="smaller", latency=False, eval_sequences=0, **further)

    def test_the_folder_is_pushed_as_it_is(self, checkpoint: Path, own_hub: StandInHub, tmp_path: Path) -> None:
        result = oneshot(checkpoint, config=CUT, options=self.options(tmp_path, hub_revision="half"))
        assert result.pushed is not None
        assert own_hub.branches == ["half"]
        assert own_hub.files["me/smaller"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def test_a_failure_loses_nothing(
        self, checkpoint: Path, own_hub: StandInHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_hub.refuses_commits = True
        result = oneshot(checkpoint, config=CUT, options=self.options(tmp_path))
        assert result.pushed is None
        assert f"push it again: loraprune push {tmp_path / 'out'} smaller" in caplog.text
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_a_missing_login_is_told_before_the_run(
        self, checkpoint: Path, own_hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "another")
        with pytest.raises(ValueError, match="hf auth login"):
            oneshot(checkpoint, config=CUT, options=self.options(tmp_path))
        assert not (tmp_path / "out").exists()

    def test_other_processes_push_nothing(
        self, own_hub: StandInHub, finished: PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished.save_pretrained(tmp_path / "out")
        monkeypatch.setattr(push, "is_main", lambda: False)
        assert push.pushed(finished, self.options(tmp_path)).pushed is None
        assert own_hub.files == {}


def test_training_may_be_an_object_of_the_trainers_arguments(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    given = SFTConfig(
        str(tmp_path / "elsewhere"), report_to="none", gradient_checkpointing=False, adam_beta2=0.9, **QUICK
    )
    before = given.to_dict()
    result = prune(checkpoint, data, CONFIG, training=given, options=RunOptions(output=tmp_path / "out", latency=False))
    assert given.to_dict() == before
    assert not (tmp_path / "elsewhere").exists()
    training = result.record["settings"]["training"]
    assert training["learning_rate"] == given.learning_rate  # trl's, not ours
    assert training["max_steps"] == 6
    recipe = result.record["recipe"]
    assert recipe["max_length"] == 32
    assert recipe["adam_beta2"] == 0.9
