"""Models that are quantized already, and GGUF files: what a user meets who names one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoint.exports.folders import uniform_folder
from tests.checkpoint.exports.test_plain_copy import quantized_folder
from tests.cli.conftest import Command
from transformers import AutoModelForCausalLM

CUT = ("--criterion", "magnitude", "--repair", "none", "--ratio", "0.3", "--no-latency", "--quiet", "-o", "out")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.full
def test_a_quantized_model_is_refused_with_the_command_that_copies_it(run: Command) -> None:
    quantized_folder(Path("model"), "gptq")
    refused = run("oneshot", "model", *CUT)
    assert refused.code == 2
    assert "model is quantized (gptq)" in refused.err
    assert "loraprune export model --format safetensors -o OUT" in refused.err
    assert run("export", "model", "--format", "safetensors", "-o", "copy").code == 0
    done = run("oneshot", "copy", *CUT)
    assert done.code == 0, done.err


def test_a_gguf_file_is_read_back(run: Command) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    uniform_folder(Path("model"))
    assert run("export", "model", "--format", "gguf", "-o", "files/small.gguf").code == 0
    for named in ("files/small.gguf", "files"):
        refused = run("oneshot", named, *CUT)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert "loraprune export files/small.gguf --format safetensors -o OUT" in refused.err
    assert "loraprune export files/small.gguf --format safetensors -o OUT" in run("inspect", "files/small.gguf").err
    copied = run("export", "files/small.gguf", "--format", "safetensors")
    assert copied.code == 0, copied.err
    assert "small-16bit" in copied.out
    found, expected = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in ("small-16bit", "model")
    )
    ids = torch.arange(20)[None]
    assert torch.allclose(found(ids).logits, expected(ids).logits, atol=2e-2)
    done = run("oneshot", "small-16bit", *CUT)
    assert done.code == 0, done.err
