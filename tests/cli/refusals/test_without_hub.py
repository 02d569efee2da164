"""Names of the hub, where there is none: every command says so at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.cli.conftest import Command
from tests.cli.refusals.test_refusals import test_is_refused as check_refused
from tests.cli.refusals.wrong import Wrong, wrong

from loraprune.data import hub

NO_MODEL = ("owner/name", "cannot be reached", "Name a folder")
NO_PUSH = ("pushed to me/x", "cannot be reached", "loraprune push OUT NAME")

TABLE = (
    wrong("plan owner/name", *NO_MODEL),
    wrong("inspect owner/name", *NO_MODEL),
    wrong("prune owner/name --data data.jsonl -o out", *NO_MODEL),
    wrong("oneshot owner/name --data data.jsonl --ratio 0.5 -o out", *NO_MODEL),
    wrong("recover owner/name --data data.jsonl -o out", *NO_MODEL),
    wrong("compare-criteria owner/name --data data.jsonl", *NO_MODEL),
    wrong("eval owner/name --ppl data.jsonl", *NO_MODEL),
    wrong("bench owner/name", *NO_MODEL),
    wrong("bench model --against-base --base owner/name", *NO_MODEL),
    wrong("plan nobody-knows-this", "nobody-knows-this", "cannot be reached"),
    wrong("export owner/name --format gguf", "owner/name is not a folder"),
    wrong("verify owner/name", "owner/name is not a folder"),
    wrong("prune model --data owner/data -o out", "owner/data", "cannot be reached", "Check the path"),
    wrong("compare-criteria model --data owner/data", "owner/data", "cannot be reached"),
    wrong(
        "oneshot model --data data.jsonl --eval-data owner/data --ratio 0.5 -o out", "owner/data", "cannot be reached"
    ),
    wrong("prune model --data data.jsonl --tokenizer owner/name -o out", "owner/name", "--tokenizer"),
    wrong("eval model --ppl data.jsonl --tokenizer owner/name", "owner/name", "--tokenizer"),
    wrong("eval model --ppl wikitext2", "wikitext2", "cannot be reached", "wikitext2=FILE"),
    wrong("oneshot model --data data.jsonl --ratio 0.5 -o out --push-to-hub me/x", *NO_PUSH),
    wrong("recover model --data data.jsonl -o out --push-to-hub me/x --private", *NO_PUSH),
    wrong("export model --format gguf --push-to-hub me/x", *NO_PUSH),
    wrong("push model me/x", *NO_PUSH),
    wrong("eval model", "wikitext2", "cannot be reached", "wikitext2=FILE"),
)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The hub takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        yield endpoint


@pytest.mark.parametrize("row", [pytest.param(row, id=row.line) for row in TABLE])
def test_is_refused_without_a_hub(
    row: Wrong,
    run: Command,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    no_hub: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    check_refused(row, run, checkpoint, data, tmp_path, monkeypatch)


def test_the_whole_command_takes_no_longer(no_hub: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    finished = subprocess.run(
        [sys.executable, "-m", "loraprune", "plan", "owner/name"],
        env=environment | {"HF_ENDPOINT": no_hub, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,  # of which a busy machine takes most to import torch
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "cannot be reached" in finished.stderr.splitlines()[-1]
