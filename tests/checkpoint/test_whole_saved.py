"""What is left of whole blocks or of the hidden size loads in a process that has never heard of this package."""

from __future__ import annotations

import torch
from tests.models import logits_of, tiny_model, token_ids, with_lora
from tests.zoo.process import Checkpoint, load_elsewhere

from loraprune.checkpoint.save import finish
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids()
KEPT = {"blocks": (1, 2), "hidden": tuple(channel for channel in range(32) if channel % 4)}


def test_stock_classes_load_them_and_compute_what_the_model_with_its_adapter_did(tmp_path):
    checkpoints, expected = [], {}
    for kind, kept in KEPT.items():
        for tied in (False, True):
            model = with_lora(tiny_model(num_hidden_layers=4, tie_word_embeddings=tied))
            structure = describe(model, (kind,))
            full = Plan.full(structure)
            plan = full.keep({structure.dimensions[0].name: kept})
            slice_(model, structure, full, plan)
            folder = tmp_path / f"{kind}-{tied}"
            expected[folder] = logits_of(model, IDS)
            finish(model, structure, plan).save_pretrained(folder)
            checkpoints.append(Checkpoint(folder, "AutoModelForCausalLM", stock=True, inputs={"input_ids": IDS}))
    found = load_elsewhere(checkpoints, tmp_path)
    for folder, logits in expected.items():
        torch.testing.assert_close(found[folder], logits, rtol=0, atol=1e-5)
