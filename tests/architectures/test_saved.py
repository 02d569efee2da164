"""What is saved loads in a process that has never heard of this package, for every architecture and variant."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tests.architectures.test_contract import TOLERANCE, scale
from tests.zoo.cases import CASES
from tests.zoo.layouts import DEFAULT_ROWS
from tests.zoo.process import Checkpoint, load_elsewhere
from tests.zoo.row import logits

from loraprune.checkpoint.save import finish

DEFAULT = [case for case in CASES if case.row.name in DEFAULT_ROWS]
OTHERS = [case for case in CASES if case.row.name not in DEFAULT_ROWS]


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("cases", [DEFAULT, pytest.param(OTHERS, marks=pytest.mark.full)], ids=["default", "others"])
@torch.no_grad()
def test_every_checkpoint_gives_elsewhere_the_logits_that_its_model_gives_in_memory(tmp_path, cases):
    # One process loads them all: it takes seconds to start. By a class of transformers where the stock config can say
    # the widths, by our modeling file everywhere else.
    checkpoints, expected = {}, {}
    for case in cases:
        for name in case.plan_names:
            plan, inputs = case.plan(name), case.row.inputs()
            # The attention that `from_pretrained` chooses: Falcon's two give different logits with ALiBi.
            sliced = case.sliced(name, lora=True, attention=case.row.attentions[-1])
            model = finish(copy.deepcopy(sliced), case.structure, plan)
            key, folder = f"{case}, {name}", tmp_path / str(len(checkpoints))
            model.save_pretrained(folder)
            expected[key] = logits(model, inputs)
            checkpoints[key] = Checkpoint(folder, case.row.auto.__name__, case.is_stock(plan), inputs)
            config = json.loads((folder / "config.json").read_text())
            assert ("auto_map" in config) != checkpoints[key].stock, key
            assert (folder / "modeling_loraprune.py").is_file() != checkpoints[key].stock, key
    found = load_elsewhere(list(checkpoints.values()), tmp_path)
    differences = {
        key: (found[checkpoint.folder] - expected[key]).abs().max().item() / scale(expected[key])
        for key, checkpoint in checkpoints.items()
    }
    assert {key: value for key, value in differences.items() if not value <= TOLERANCE} == {}
    assert {checkpoint.stock for checkpoint in checkpoints.values()} == {True, False}
