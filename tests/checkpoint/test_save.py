from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.checkpoints import VOCABULARY, byte_model, tiny_tokenizer
from tests.models import FAMILIES, logits_of, token_ids, with_lora
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PreTrainedModel

from loraprune.checkpoint import save as export
from loraprune.checkpoint.save import (
    check_disk_space,
    check_relaxed_class,
    finish,
    save_checkpoint,
)
from loraprune.layers.lora import effective_weight
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.config_widths import write_widths_
from loraprune.surgery.slicing import slice_

IDS = token_ids(2, 11, vocabulary=VOCABULARY)
CHANNELS = {0: tuple(range(0, 64, 2)), 1: tuple(range(20, 52))}


def uniform_plan(*heads: tuple[int, ...]) -> Plan:
    """The same widths in both layers, but other groups."""
    kept = {f"layers.{layer}.heads": groups for layer, groups in enumerate(heads)}
    return Plan(kept | {f"layers.{layer}.channels": groups for layer, groups in CHANNELS.items()})


HALF = uniform_plan((1, 3), (0, 2))
THREE_OF_FOUR = uniform_plan((0, 1, 3), (1, 2, 3))


def cut(model: PreTrainedModel, plan: Plan = HALF, **lora: Any) -> tuple[PeftModel, Structure]:
    """The model with an adapter, cut to a plan."""
    structure = describe(model)
    adapted = with_lora(model, **lora)
    slice_(adapted, structure, Plan.full(structure), plan)
    return adapted, structure


def save(folder: Path, model: PreTrainedModel) -> None:
    save_checkpoint(folder, model, tiny_tokenizer(), record={"plan": []}, card="# A card\n")


class TestWidths:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_config_says_the_new_widths_and_nothing_else_changes(self, family: str) -> None:
        model = byte_model(family)
        before = model.config.to_dict()
        structure = describe(model)
        write_widths_(model.config, structure, HALF)
        after = model.config.to_dict()
        changed = {key: after[key] for key in after if after[key] != before[key]}
        assert changed == {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
        assert after["head_dim"] == 4

    def test_a_head_width_that_was_implied_is_written_down(self) -> None:
        model = byte_model("mistral", head_dim=None)
        model.config.head_dim = None
        write_widths_(model.config, describe(model), HALF)
        assert model.config.head_dim == 4
        assert model.config.num_attention_heads == 4

    @pytest.mark.parametrize("name", ["layers.1.heads", "layers.1.channels"])
    def test_a_ragged_plan_is_refused(self, name: str) -> None:
        model = byte_model()
        before = model.config.to_dict()
        ragged = Plan({**HALF.kept, name: (0,)})
        with pytest.raises(
            ValueError, match="widths differ from layer to layer, or the config has no attribute for them"
        ):
            write_widths_(model.config, describe(model), ragged)
        assert model.config.to_dict() == before


class TestMerging:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_merged_equals_unmerged(self, family: str) -> None:
        adapted, structure = cut(byte_model(family))
        expected = logits_of(adapted, IDS)
        merged = finish(adapted, structure, HALF)
        torch.testing.assert_close(logits_of(merged, IDS), expected, rtol=0.0, atol=1e-5)
        assert type(merged).__module__.startswith("transformers.")
        assert not any("lora" in name for name, _ in merged.named_parameters())

    def test_the_adapter_is_felt(self) -> None:
        adapted, structure = cut(byte_model())
        with adapted.disable_adapter():
            without = logits_of(adapted, IDS)
        assert (logits_of(finish(adapted, structure, HALF), IDS) - without).abs().max() > 0.1

    def test_a_model_without_adapter_is_finished_too(self) -> None:
        model = byte_model()
        structure = describe(model)
        slice_(model, structure, Plan.full(structure), HALF)
        expected = logits_of(model, IDS)
        assert torch.equal(logits_of(finish(model, structure, HALF), IDS), expected)

    @pytest.mark.parametrize("base", [torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
    def test_weight_and_update_are_added_in_32_bits_and_rounded_once(
        self, base: torch.dtype, dtype: torch.dtype | None
    ) -> None:
        adapted, structure = cut(byte_model(dtype=base))
        down = adapted.get_base_model().model.layers[1].mlp.down_proj
        expected = effective_weight(down).to(dtype or base)
        merged = finish(adapted, structure, HALF, dtype=dtype)
        weight = merged.model.layers[1].mlp.down_proj.weight
        assert weight.dtype == expected.dtype
        assert torch.equal(weight, expected)
        assert {parameter.dtype for parameter in merged.parameters()} == {expected.dtype}

    @pytest.mark.parametrize(
        "lora",
        [
            {"use_rslora": True},
            {"use_dora": True},
            {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
            {"modules_to_save": ["lm_head"]},
            {"trainable_token_indices": IDS[0, :4].tolist()},
        ],
        ids=lambda lora: next(iter(lora)),
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_every_part_of_an_adapter_is_merged(self, lora: dict[str, Any], dtype: torch.dtype) -> None:
        adapted, structure = cut(byte_model(dtype=dtype), **lora)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora" in name or "modules_to_save" in name or "trainable_tokens" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        expected = logits_of(adapted, IDS).float()
        with adapted.disable_adapter():
            effect = (logits_of(adapted, IDS) - expected).abs().mean()
        merged = finish(adapted, structure, HALF, dtype=dtype)
        difference = (logits_of(merged, IDS).float() - expected).abs().mean()
        assert difference < (0.1 if dtype == torch.bfloat16 else 1e-5) * effect

    def test_an_adapter_that_cannot_be_merged_is_refused(self) -> None:
        with pytest.warns(UserWarning, match="merging LoRA weights won't be possible"):
            adapted, structure = cut(byte_model(dtype=torch.bfloat16), lora_bias=True)
        with pytest.raises(RuntimeError, match="bias"):
            finish(adapted, structure, HALF, dtype=torch.bfloat16)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_rotary_frequencies_keep_their_32_bits(self, family: str) -> None:
        adapted, structure = cut(byte_model(family))
        before = adapted.get_base_model().model.rotary_emb.inv_freq.clone()
        merged = finish(adapted, structure, HALF, dtype=torch.bfloat16)
        assert before.dtype == torch.float32
        assert torch.equal(merged.model.rotary_emb.inv_freq, before)

    def test_the_forward_that_trl_puts_on_an_instance_is_taken_off(self) -> None:
        adapted, structure = cut(byte_model())
        adapted.get_base_model().forward = lambda **kwargs: None
        assert logits_of(finish(adapted, structure, HALF), IDS).shape == (2, 11, VOCABULARY)


class TestAnyHeadCount:
    """Three of four KV heads are six query heads; 6 does not divide the hidden size 32, which Llama's config wants."""

    def test_a_llama_with_a_head_count_that_its_config_refuses_becomes_a_mistral_with_equal_logits(self) -> None:
        adapted, structure = cut(byte_model(), THREE_OF_FOUR)
        expected = logits_of(adapted, IDS)
        merged = finish(adapted, structure, THREE_OF_FOUR)
        assert isinstance(merged.config, MistralConfig)
        assert merged.config.architectures in (None, ["MistralForCausalLM"])
        assert (merged.config.num_attention_heads, merged.config.num_key_value_heads) == (6, 3)
        assert merged.config.sliding_window is None
        torch.testing.assert_close(logits_of(merged, IDS), expected, rtol=0.0, atol=1e-5)

    def test_tied_embeddings_are_one_parameter_in_memory_too(self) -> None:
        adapted, structure = cut(byte_model(tie_word_embeddings=True), THREE_OF_FOUR)
        merged = finish(adapted, structure, THREE_OF_FOUR)
        assert merged.lm_head.weight is merged.model.embed_tokens.weight

    def test_a_llama_with_a_legal_head_count_stays_a_llama(self) -> None:
        adapted, structure = cut(byte_model())
        assert finish(adapted, structure, HALF).config.model_type == "llama"

    @pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
    def test_other_families_keep_their_class_at_any_head_count(self, family: str) -> None:
        adapted, structure = cut(byte_model(family), THREE_OF_FOUR)
        assert finish(adapted, structure, THREE_OF_FOUR).config.model_type == family

    def test_generation_settings_and_rope_come_along(self) -> None:
        model = byte_model(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
        model.generation_config.temperature = 0.3
        adapted, structure = cut(model, THREE_OF_FOUR)
        merged = finish(adapted, structure, THREE_OF_FOUR)
        assert merged.config.rope_parameters["rope_theta"] == 5000.0
        assert merged.generation_config.temperature == 0.3
        assert merged.config.eos_token_id == model.config.eos_token_id

    @pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
    def test_a_llama_with_biases_is_refused_beforehand(self, bias: str) -> None:
        model = byte_model(**{bias: True})
        with pytest.raises(ValueError, match=r"saves the model as mistral, which has no biases.*--head-counts config"):
            check_relaxed_class(describe(model), model.config)
        check_relaxed_class(describe(byte_model()), byte_model().config)


# Runs in a process of its own that has never heard of this package.
PLAIN_PROCESS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "loraprune":
            raise ImportError("loraprune is blocked here")

sys.meta_path.insert(0, Blocker())
try:
    import loraprune
except ImportError:
    pass
else:
    raise SystemExit("loraprune could be imported")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
source, target, *folders = sys.argv[1:]
ids = load_file(source)["ids"]
found = {}
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found[f"{folder}/logits"] = model(input_ids=ids, use_cache=False).logits
    for cache in (True, False):
        text = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12,
            do_sample=False, use_cache=cache, pad_token_id=0,
        )
        found[f"{folder}/generated {'with' if cache else 'without'} cache"] = text
assert not any(name.partition(".")[0] == "loraprune" for name in sys.modules)
save_file(found, target)
"""

Saved = namedtuple("Saved", "folder expected logits cached uncached")

CASES: dict[str, tuple[str, dict[str, Any], Plan]] = {
    **{family: (family, {}, HALF) for family in FAMILIES},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, HALF),
    "llama without shared KV heads": ("llama", {"num_attention_heads": 4, "head_dim": 8}, HALF),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}, HALF),
    "qwen3 with tied embeddings": ("qwen3", {"tie_word_embeddings": True}, HALF),
    "llama as mistral": ("llama", {}, THREE_OF_FOUR),
    "tied llama as mistral": ("llama", {"tie_word_embeddings": True}, THREE_OF_FOUR),
    "qwen2 with three of four heads": ("qwen2", {}, THREE_OF_FOUR),
    "bfloat16 llama": ("llama", {"dtype": torch.bfloat16}, HALF),
    "bfloat16 qwen2": ("qwen2", {"dtype": torch.bfloat16, "tie_word_embeddings": True}, HALF),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """Every case: pruned, saved, and loaded again by plain transformers in another process."""
    root = tmp_path_factory.mktemp("export")
    expected = {}
    for number, (name, (family, changes, plan)) in enumerate(CASES.items()):
        adapted, structure = cut(byte_model(family, **changes), plan)
        merged = finish(adapted, structure, plan, dtype=changes.get("dtype"))
        expected[name] = (root / str(number), logits_of(merged, IDS))
        save(root / str(number), merged)
    save_file({"ids": IDS}, root / "ids.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    folders = [str(folder) for folder, _ in expected.values()]
    process = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_PROCESS, root / "ids.safetensors", root / "found.safetensors", *folders],
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = load_file(root / "found.safetensors")
    return {
        name: Saved(
            folder,
            logits,
            found[f"{folder}/logits"],
            found[f"{folder}/generated with cache"],
            found[f"{folder}/generated without cache"],
        )
        for name, (folder, logits) in expected.items()
    }


@pytest.mark.parametrize("case", CASES)
class TestFreshProcess:
    def test_the_checkpoint_loads_without_this_package_and_gives_equal_logits(
        self, saved: dict[str, Saved], case: str
    ) -> None:
        found = saved[case]
        assert found.logits.dtype == found.expected.dtype
        torch.testing.assert_close(found.logits, found.expected, rtol=0.0, atol=1e-5)

    def test_it_generates_the_same_with_and_without_kv_cache(self, saved: dict[str, Saved], case: str) -> None:
        found = saved[case]
        assert found.cached.shape == (2, 11 + 12)
        if found.expected.dtype == torch.float32:  # in 16 bits, one rounding may tip the scales
            assert torch.equal(found.cached, found.uncached)
        assert torch.equal(found.cached[:, 11], found.expected[:, -1].argmax(-1))

    def test_only_stock_files_and_safetensors_are_written(self, saved: dict[str, Saved], case: str) -> None:
        names = {path.name for path in saved[case].folder.iterdir()}
        assert names == {
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "pruning.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }

    def test_the_config_is_a_stock_one_with_the_widths_of_the_tensors(self, saved: dict[str, Saved], case: str) -> None:
        family, changes, plan = CASES[case]
        config = json.loads((saved[case].folder / "config.json").read_text())
        weights = load_file(saved[case].folder / "model.safetensors")
        kv_heads, channels = plan.count("layers.0.heads"), plan.count("layers.0.channels")
        assert "auto_map" not in config
        assert config["model_type"] == ("mistral" if "as mistral" in case else family)
        assert (config["num_key_value_heads"], config["intermediate_size"]) == (kv_heads, channels)
        for layer in range(2):
            prefix = f"model.layers.{layer}"
            assert weights[f"{prefix}.self_attn.k_proj.weight"].shape == (kv_heads * config["head_dim"], 32)
            queries = config["num_attention_heads"] * config["head_dim"]
            assert weights[f"{prefix}.self_attn.o_proj.weight"].shape == (32, queries)
            assert weights[f"{prefix}.mlp.down_proj.weight"].shape == (32, channels)
            if changes.get("attention_bias"):
                assert weights[f"{prefix}.self_attn.q_proj.bias"].shape == (queries,)

    def test_the_file_has_the_dtype_of_the_base(self, saved: dict[str, Saved], case: str) -> None:
        dtype = CASES[case][1].get("dtype", torch.float32)
        folder = saved[case].folder
        with safe_open(folder / "model.safetensors", "pt") as file:
            found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert found == {"BF16" if dtype == torch.bfloat16 else "F32"}
        assert AutoConfig.from_pretrained(folder).dtype == dtype

    def test_tied_embeddings_stay_tied(self, saved: dict[str, Saved], case: str) -> None:
        tied = CASES[case][1].get("tie_word_embeddings", False)
        folder = saved[case].folder
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        shared = loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
        assert shared is tied


class BoomError(Exception):
    pass


def test_a_checkpoint_whose_extras_fail_does_not_appear(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "pruning.json").write_text("old")

    def extras(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        raise BoomError

    with pytest.raises(BoomError):
        save_checkpoint(output, byte_model(), tiny_tokenizer(), record={}, card="", extras=extras)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in output.iterdir()] == ["pruning.json"]


class TestDiskSpace:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """A disk with 10 GB free; the folders that were asked about."""
        folders: list[Path] = []

        def usage(folder: Path) -> Any:
            folders.append(Path(folder))
            return namedtuple("usage", "total used free")(20e9, 10e9, 10e9)

        monkeypatch.setattr(export.shutil, "disk_usage", usage)
        return folders

    def test_what_fits_with_some_margin_passes(self, tmp_path: Path, asked: list[Path]) -> None:
        check_disk_space(tmp_path, int(9e9))
        assert asked == [tmp_path]

    def test_what_does_not_fit_is_refused_with_both_sizes(self, tmp_path: Path, asked: list[Path]) -> None:
        with pytest.raises(OSError, match=r"needs about 10\.45 GB in .*, but only 10\.00 GB are free"):
            check_disk_space(tmp_path, int(9.5e9))

    def test_a_folder_that_does_not_exist_yet_is_measured_where_it_will_be(
        self, tmp_path: Path, asked: list[Path]
    ) -> None:
        check_disk_space(tmp_path / "a" / "b", 1)
        assert asked == [tmp_path]
