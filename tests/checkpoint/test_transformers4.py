"""Where we say that transformers 4.57 loads a result, it does, with the logits and the tokens of transformers 5."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures.test_contract import TOLERANCE, scale
from tests.checkpoint.test_older_tokenizer import CASES as TOKENIZERS
from tests.checkpoint.test_older_tokenizer import TEXT, base_tokenizer
from tests.models import tiny_model
from tests.zoo import ROWS
from tests.zoo.cases import CASES
from tests.zoo.process import Checkpoint, load_elsewhere
from tests.zoo.row import Row, logits, randomize_

from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.save import finish, save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.full]

PACKAGES = ("transformers==4.57.*", "huggingface-hub<1.0", "tokenizers==0.22.*")
CLAIM = "transformers >= 4.57"
BY_ROW = {row.name: row for row in ROWS}
BIASES = "bert, untied"
"""Its two biases of the head are random and differ here; in 4.57 they are one."""

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SCALED: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", **LLAMA3},
)
ROTARY = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "gpt_neox",
    "phi",
    "olmo2",
    "nemotron",
    "stablelm",
    "falcon with one KV head",
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4.57 and what it needs in other versions than transformers 5."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {PACKAGES[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder


def _with_rope(row: Row) -> Iterator[tuple[str, Any]]:
    """Models of a family with every kind of rotary embedding, on a base that no config has by default."""
    for rope in SCALED:
        config: Any = row.config()
        if rope["rope_type"] == "dynamic" and "partial_rotary_factor" in config.rope_parameters:
            continue  # a formula that divides by the width less two
        both = {**rope, "rope_theta": 500000.0}
        if "full_attention" in config.rope_parameters:
            config.rope_parameters["full_attention"] |= both
            config.rope_parameters["sliding_attention"]["rope_theta"] = 777.0
        else:
            config.rope_parameters |= both
        model = row.auto.from_config(config, attn_implementation=row.attentions[-1])
        randomize_(model, 0)
        yield f"{row.name}, {rope['rope_type']}", model.eval()


def _with_own_head(row: Row) -> Any:
    model: Any = row.model()
    model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    return model


def _models() -> Iterator[tuple[str, Row, Any]]:
    """Dense and pruned models of every family, by name."""
    for row in ROWS:
        yield f"{row.name}, dense", row, row.model(attention=row.attentions[-1])
    for case in CASES:
        for name in case.plan_names:
            sliced = copy.deepcopy(case.sliced(name, attention=case.row.attentions[-1]))
            yield f"{case}, {name}", case.row, finish(sliced, case.structure, case.plan(name))
    for name in ROTARY:
        yield from ((key, BY_ROW[name], model) for key, model in _with_rope(BY_ROW[name]))
    for name in ("t5, gated and untied", "mt5"):
        yield f"{name}, own head", BY_ROW[name], _with_own_head(BY_ROW[name])


@torch.no_grad()
def test_logits_are_those_of_transformers_5(tmp_path: Path, packages: Path) -> None:
    checkpoints, expected, refused = {}, {}, set()
    for key, row, model in _models():
        if not runtimes_of(model)[0].startswith(CLAIM):
            refused.add(model.config.model_type.removeprefix("loraprune_"))
        elif not key.startswith(BIASES):
            folder, inputs = tmp_path / str(len(checkpoints)), row.inputs()
            save_checkpoint(folder, model, None, card="", record={})
            stock = not model.config.model_type.startswith("loraprune_")
            attention = "eager" if row.attentions == ("eager",) else None
            checkpoints[key] = Checkpoint(folder, row.auto.__name__, stock, inputs, attention)
            expected[key] = logits(model, inputs)
    found = load_elsewhere(list(checkpoints.values()), tmp_path, packages)
    differences = {
        key: (found[checkpoint.folder] - expected[key]).abs().max().item() / scale(expected[key])
        for key, checkpoint in checkpoints.items()
    }
    assert {key: value for key, value in differences.items() if not value <= TOLERANCE} == {}
    named = {"llama, uniform", "llama, ragged", "gpt_neox, ragged", "gemma3_text, llama3", "mt5, own head"}
    assert named <= set(differences)
    assert "ministral3" in refused
    assert len(differences) > 200


READ_TOKENS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import transformers
from transformers import AutoTokenizer
assert transformers.__version__.startswith("4.57"), transformers.__version__
print(json.dumps([AutoTokenizer.from_pretrained(name)(sys.argv[2])["input_ids"] for name in sys.argv[3:]]))
"""


def test_tokens_are_those_of_transformers_5(tmp_path: Path, packages: Path) -> None:
    folders, expected = [], []
    cases: list[tuple[Any, ...]] = [case.values for case in TOKENIZERS]
    cases += [
        ("bytes", {"additional_special_tokens": ["<|im_start|>"]}, ""),
        ("bytes", {"extra_special_tokens": {"image_token": "<|im_start|>"}}, ""),
    ]
    for kind, changes, _ in cases:
        place = tmp_path / str(len(folders))
        tokenizer = base_tokenizer(place / "base", kind, **changes)
        save_checkpoint(place / "out", tiny_model("llama"), tokenizer, card="", record={})
        folders.append(str(place / "out"))
        expected.append(tokenizer(TEXT)["input_ids"])
    done = subprocess.run(
        [sys.executable, "-I", "-c", READ_TOKENS, str(packages), TEXT, *folders],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
