"""What can be done with what a run gives back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from tests.finished_run import CONFIG, QUICK
from trl import SFTConfig

import loraprune
from loraprune import OneshotConfig, OutputExistsError, PruneResult, RunOptions, oneshot, prune


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


class Hub:
    """Remembers what was published."""

    uploads: list[dict[str, Any]]

    def __init__(self, token: Any = None) -> None:
        Hub.uploads = [{"token": token}]

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        Hub.uploads[0] |= options
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
        Hub.uploads[0] |= options | {"files": files_of(folder_path)}
        return SimpleNamespace(commit_url="hub/commit/1")


def test_a_result_is_published_in_one_commit(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    result = oneshot(
        checkpoint,
        config=OneshotConfig(criterion="magnitude", ratio=0.3, repair="none"),
        options=RunOptions(eval_sequences=0, latency=False),
    )
    assert result.push_to_hub("smaller", private=True, token="secret") == "hub/commit/1"
    (upload,) = Hub.uploads
    assert upload["files"] >= {"config.json", "model.safetensors", "pruning.json", "README.md", "tokenizer.json"}
    assert (upload["repo_id"], upload["private"], upload["token"]) == ("me/smaller", True, "secret")


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
