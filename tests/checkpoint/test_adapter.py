from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PromptTuningConfig, get_peft_model
from tests.checkpoint.adapters import WEIGHTS, plain_adapter, rename_tensors, rewrite
from tests.checkpoints import VOCABULARY, byte_model, load_measured, measurable, tiny_checkpoint, tiny_tokenizer
from tests.finished_run import QUICK
from tests.models import logits_of, token_ids
from transformers import AutoModelForCausalLM

from loraprune import OneshotConfig, PruneResult, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.checkpoint.adapter import find_adapter
from loraprune.checkpoint.load import CheckpointError

IDS = token_ids(2, 12, vocabulary=VOCABULARY)


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """LoRA on ``checkpoint``."""
    plain_adapter(tmp_path / "adapter", checkpoint)
    return tmp_path / "adapter"


class TestPlainAdapters:
    @pytest.mark.parametrize("merge", [True, False])
    def test_an_adapter_is_measured_on_its_base(self, checkpoint: Path, tmp_path: Path, merge: bool) -> None:
        model = plain_adapter(tmp_path, checkpoint)
        found = load_measured(tmp_path, merge=merge)
        assert measurable(tmp_path).checkpoint == str(checkpoint)
        assert (logits_of(found, IDS) - logits_of(model, IDS)).abs().max() < 1e-4
        assert hasattr(found, "merge_and_unload") is not merge

    def test_it_differs_from_the_base(self, checkpoint: Path, adapter: Path) -> None:
        base, adapted = load_measured(checkpoint), load_measured(adapter)
        assert (logits_of(adapted, IDS) - logits_of(base, IDS)).abs().max() > 0.1
        assert adapted.num_parameters() == base.num_parameters()
        assert measurable(adapter).fingerprint != measurable(checkpoint).fingerprint

    def test_its_fingerprint_changes_with_adapter_and_base(
        self, checkpoint: Path, adapter: Path, tmp_path: Path
    ) -> None:
        other = tiny_checkpoint(tmp_path / "other", seed=3)
        plain_adapter(tmp_path / "second", checkpoint, seed=4)
        names = [(adapter, None), (tmp_path / "second", None), (adapter, str(other))]
        assert len({measurable(name, base=base).fingerprint for name, base in names}) == 3

    def test_an_adapter_of_another_kind_is_merged_by_peft(self, checkpoint: Path, tmp_path: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        config = IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        )
        model = get_peft_model(base, config)
        model.save_pretrained(tmp_path)
        assert (logits_of(load_measured(tmp_path), IDS) - logits_of(model.eval(), IDS)).abs().max() < 1e-4

    def test_it_takes_its_own_tokenizer_where_it_has_one(self, adapter: Path) -> None:
        tokenizer = tiny_tokenizer(pad=True)
        assert measurable(adapter).tokenizer.pad_token is None
        tokenizer.save_pretrained(adapter)
        assert measurable(adapter).tokenizer.pad_token == "<pad>"

    def test_a_folder_without_one_has_none(self, checkpoint: Path) -> None:
        assert find_adapter(str(checkpoint)) is None


class TestAdaptersOfRuns:
    @pytest.mark.parametrize("merge", [True, False])
    def test_of_a_pruned_model_the_base_is_cut_and_refitted_first(self, finished: PruneResult, merge: bool) -> None:
        assert finished.output is not None
        found = load_measured(finished.output / "adapter", merge=merge)
        difference = (logits_of(found, IDS) - logits_of(finished.model, IDS)).abs().max()
        assert difference == 0.0 if merge else difference < 1e-4
        assert type(found).__name__ == ("LlamaForCausalLM" if merge else "PeftModelForCausalLM")

    def test_of_a_ragged_model_with_layers_left_out(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        config = PruningConfig(ratio=0.3, calibration_sequences=8, allocation="global", keep_layers=(-1,))
        options = RunOptions(output=tmp_path / "out", save_adapter=True, latency=False, report=False)
        result = prune(checkpoint, data, config, training=QUICK, options=options)
        found = load_measured(tmp_path / "out" / "adapter")
        assert torch.equal(logits_of(found, IDS), logits_of(result.model, IDS))

    def test_of_a_sparse_model_zeros_stay_zero(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        options = RunOptions(output=tmp_path / "sparse", report=False)
        oneshot(checkpoint, None, OneshotConfig(sparsity="2:4", criterion="magnitude"), options=options)
        options = RunOptions(output=tmp_path / "out", save_adapter=True, report=False)
        training = QUICK | {"learning_rate": 1e-2}
        result = recover(tmp_path / "sparse", data, training=training, options=options)
        for merge in (True, False):
            found = load_measured(tmp_path / "out" / "adapter", merge=merge)
            assert (logits_of(found, IDS) - logits_of(result.model, IDS)).abs().max() < 1e-4

    def test_with_masks_of_single_weights(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        options = RunOptions(output=tmp_path / "out", save_adapter=True, latency=False, report=False)
        config = PruningConfig(ratio=0.5, criterion="pst")
        result = prune(checkpoint, data, config, training=QUICK, options=options)
        found = load_measured(tmp_path / "out" / "adapter")
        assert torch.equal(logits_of(found, IDS), logits_of(result.model, IDS))
        with pytest.raises(CheckpointError, match=r"can only be used merged"):
            load_measured(tmp_path / "out" / "adapter", merge=False)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("loraprune_adapter.json", "which records what was cut, is missing. Name the finished checkpoint"),
            ("refitted_base_weights.safetensors", "but its refitted_base_weights.safetensors is missing"),
        ],
    )
    def test_it_is_refused_where_a_part_of_it_is_missing(
        self, finished: PruneResult, tmp_path: Path, missing: str, message: str
    ) -> None:
        assert finished.output is not None
        copy = shutil.copytree(finished.output / "adapter", tmp_path / "copy")
        (copy / missing).unlink()
        with pytest.raises(CheckpointError, match=message):
            load_measured(copy)

    def test_it_is_refused_on_another_base(self, finished: PruneResult, tmp_path: Path) -> None:
        assert finished.output is not None
        other = tiny_checkpoint(tmp_path / "other", num_hidden_layers=1)
        with pytest.raises(CheckpointError, match=r"does not fit its base .*other: The plan is for another model"):
            load_measured(finished.output / "adapter", base=str(other))


class TestWrongAdapters:
    @pytest.mark.parametrize("base", ["./nowhere", "/tmp/loraprune/there/is/none"])
    def test_a_missing_base_is_an_error(self, adapter: Path, checkpoint: Path, base: str) -> None:
        rewrite(adapter, base_model_name_or_path=base)
        with pytest.raises(CheckpointError, match=rf"is an adapter, but its base {base} cannot be read: .*--base"):
            measurable(adapter)
        assert measurable(adapter, base=str(checkpoint)).checkpoint == str(checkpoint)
        load_measured(adapter, base=str(checkpoint))

    def test_an_adapter_that_names_no_base_is_an_error(self, adapter: Path) -> None:
        rewrite(adapter, base_model_name_or_path=None)
        with pytest.raises(CheckpointError, match=r"names no base. Name the base with --base"):
            measurable(adapter)

    def test_a_base_for_what_is_no_adapter_is_an_error(self, checkpoint: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is not an adapter. Leave it out"):
            measurable(checkpoint, base=str(checkpoint))

    def test_an_adapter_on_an_adapter_is_refused(self, adapter: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(adapter, tmp_path / "copy")
        rewrite(copy, base_model_name_or_path=str(adapter))
        with pytest.raises(CheckpointError, match=r"is an adapter on another adapter"):
            measurable(copy)

    @pytest.mark.parametrize(
        ("rename", "message"),
        [
            (lambda name: name.replace(".layers.1.", ".layers.7."), "14 weights match no layer of the base"),
            (lambda name: None if ".layers.1." in name else name, "14 weights of its layers are missing"),
            (lambda name: "x." + name, "weights match no layer of the base"),
        ],
        ids=["another layer", "missing", "another prefix"],
    )
    def test_weights_without_a_place_and_places_without_weights_are_errors(
        self, adapter: Path, rename: Any, message: str
    ) -> None:
        rename_tensors(adapter, rename)
        with pytest.raises(CheckpointError, match=message):
            load_measured(adapter)

    def test_targets_that_the_base_does_not_have_are_an_error(self, adapter: Path) -> None:
        rewrite(adapter, target_modules=["query", "value"])
        with pytest.raises(CheckpointError, match=r"does not fit its base"):
            load_measured(adapter)

    def test_weights_of_another_size_are_an_error(self, adapter: Path, tmp_path: Path) -> None:
        other = tiny_checkpoint(tmp_path / "other", intermediate_size=32)
        with pytest.raises(CheckpointError, match=r"does not fit its base .*other: .*size mismatch"):
            load_measured(adapter, base=str(other))

    def test_weights_that_are_missing_or_pickled_are_an_error(self, adapter: Path) -> None:
        (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
        with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors. Save the adapter again"):
            measurable(adapter)

    def test_a_folder_of_an_adapter_and_a_whole_model_is_ambiguous(self, adapter: Path) -> None:
        byte_model().save_pretrained(adapter)
        with pytest.raises(CheckpointError, match=r"not clear which one to load"):
            measurable(adapter)

    def test_an_adapter_that_cannot_be_merged_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        get_peft_model(base, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"of type PROMPT_TUNING, which cannot be merged"):
            measurable(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_a_config_that_is_none_is_refused(self, adapter: Path, text: str) -> None:
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter_config.json"):
            measurable(adapter)

    def test_what_a_later_version_wrote_is_refused(self, adapter: Path) -> None:
        (adapter / "loraprune_adapter.json").write_text(json.dumps({"format": 2}))
        with pytest.raises(CheckpointError, match=r"This version of loraprune cannot read .*loraprune_adapter.json"):
            measurable(adapter)
