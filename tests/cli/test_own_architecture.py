"""A model of the user's own, described in YAML, from the command line: the example of docs/architectures.md."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from tests.checkpoints import write_texts
from tests.cli.conftest import QUICK, Command
from tests.test_docs import ROOT, files_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune import architectures


@pytest.fixture
def described(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint that brings its own code, a description and data."""
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))
    for name, text in files_of((ROOT / "docs/architectures.md").read_text(encoding="utf-8")).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    talk = import_module("talk")
    talk.TalkConfig.register_for_auto_class()
    talk.TalkForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    talk.TalkForCausalLM(talk.TalkConfig()).save_pretrained(tmp_path / "my-talk")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "my-talk")
    write_texts(tmp_path / "data.jsonl")
    del sys.modules["talk"]
    return tmp_path


@pytest.mark.usefixtures("_own_code")
def test_it_can_be_inspected_pruned_loaded_and_inspected_again(run: Command, described: Path) -> None:
    own = ["--architecture", described / "talk.yaml", "--trust-remote-code"]
    assert run("inspect", described / "my-talk", *own).code == 0
    out = described / "out"
    finished = run("prune", described / "my-talk", *own, "--data", described / "data.jsonl", "-o", out, *QUICK)
    assert finished.code == 0, finished.err
    dense, pruned = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) for folder in (described / "my-talk", out)
    )
    assert pruned.config.ffn < dense.config.ffn
    assert pruned.model.blocks[0].ffn.down.in_features == pruned.config.ffn
    again = run("inspect", out, *own)
    assert again.code == 0
    assert f" {pruned.config.ffn} " in again.out


@pytest.mark.usefixtures("_own_code")
def test_without_its_description_it_is_refused(run: Command, described: Path) -> None:
    finished = run(
        "prune", described / "my-talk", "--trust-remote-code", "--data", described / "data.jsonl", "-o", described / "o"
    )
    assert finished.code == 2
    assert "'talk' are not supported" in finished.err
