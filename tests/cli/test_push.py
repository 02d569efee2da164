"""``loraprune push``, and the push of other commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoint.exports.folders import uniform_folder
from tests.cli.conftest import Command
from tests.hub_server import StandInHub

CUT = ["--criterion", "magnitude", "--repair", "none", "--ratio", "0.3", "--no-latency", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_pushes_its_result_and_says_where(run: Command, own_hub: StandInHub, checkpoint: Path) -> None:
    done = run("oneshot", checkpoint, *CUT, "-o", "out", "--push-to-hub", "lab/small", "--private")
    assert done.code == 0
    assert f"On the Hub: {own_hub.endpoint}/lab/small/commit/" in done.out
    assert own_hub.private == {"lab/small"}
    assert run("push", "out", "small", "--hub-revision", "again").code == 0
    assert own_hub.branches == ["main", "again"]
    assert own_hub.files["me/small"] == own_hub.files["lab/small"]


@pytest.mark.full
def test_a_push_that_fails_ends_with_what_to_type(run: Command, own_hub: StandInHub, checkpoint: Path) -> None:
    own_hub.refuses_commits = True
    done = run("oneshot", checkpoint, *CUT, "-o", "out", "--push-to-hub", "small")
    assert done.code == 1
    assert done.err.splitlines()[-1] == ("error: The result is not on the Hub. Push it again: loraprune push out small")
    own_hub.refuses_commits = False
    assert run("push", "out", "small").code == 0
    assert "model.safetensors" in own_hub.files["me/small"]


def test_an_exported_file_is_pushed_alone(run: Command, own_hub: StandInHub, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    uniform_folder(tmp_path / "model")
    done = run("export", "model", "--format", "gguf", "-o", "model.gguf", "--push-to-hub", "small")
    assert done.code == 0, done.err
    assert own_hub.files["me/small"].keys() == {"model.gguf", "README.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "small"], "nowhere does not exist"),
        ([".", "small"], "holds no model"),
        (["here", "https://hub/small"], "is not a valid name for a model on the Hub"),
        (["here", "small"], "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_line(
    run: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("here").mkdir()
    Path("here", "config.json").write_text("{}")
    done = run("push", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
