"""Models that no stock config can describe: our class, its text in the output folder, and its registration."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny_tokenizer
from tests.models import logits_of, tiny_model, token_ids, with_lora
from tests.thinned import thinned
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Gemma2Config, LlamaConfig, LlamaForCausalLM

from loraprune.checkpoint.pruned_class import MODELING_FILE, is_pruned_class, source
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.config_widths import stock_values
from loraprune.surgery.masking import masked
from loraprune.surgery.slicing import slice_

IDS = token_ids(2, 11)
RAGGED = {"layers.0.heads": [1, 3], "layers.0.channels": range(7), "layers.1.channels": [0, 2, 4, 6, 23]}


def ragged(model):
    """A model with an adapter cut to other widths in each layer; its finished form and what it should compute."""
    adapted = with_lora(model)
    structure = describe(adapted)
    full = Plan.full(structure)
    plan = full.keep(RAGGED)
    with masked(adapted, structure, plan):
        expected = logits_of(adapted, IDS)
    slice_(adapted, structure, full, plan)
    return finish(adapted, structure, plan), expected


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    finished, expected = ragged(tiny_model("llama"))
    folder = tmp_path_factory.mktemp("ragged") / "out"
    save_checkpoint(folder, finished, tiny_tokenizer(), record={}, card="")
    return folder, expected


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_finished_model_computes_what_the_masked_one_does(family):
    finished, expected = ragged(tiny_model(family))
    assert is_pruned_class(finished)
    torch.testing.assert_close(logits_of(finished, IDS), expected, rtol=0, atol=1e-5)


def test_this_package_loads_it_without_code_from_its_folder(saved):
    folder, expected = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("loraprune.generated")
    torch.testing.assert_close(logits_of(model.eval(), IDS), expected, rtol=0, atol=1e-5)


PROCESS = """
import sys
{first}
{second}
import torch
from safetensors.torch import load_file, save_file
folder, ids, found = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder{arguments}).eval()
with torch.no_grad():
    logits = model(load_file(ids)["ids"], use_cache=False).logits
    more = model.generate(load_file(ids)["ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
save_file({{"logits": logits, "more": more}}, found)
print("loraprune" in sys.modules)
"""
TRANSFORMERS = "from transformers import AutoModelForCausalLM"
BLOCKED = "sys.modules['loraprune'] = None"
WAYS = {
    "loraprune imported first": ("import loraprune", TRANSFORMERS, ""),
    "transformers imported first": (TRANSFORMERS, "import loraprune", ""),
    "without loraprune": (BLOCKED, TRANSFORMERS, ", trust_remote_code=True"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", thinned(WAYS))
def test_a_fresh_process_loads_it(way, saved, tmp_path):
    folder, expected = saved
    first, second, arguments = WAYS[way]
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    code = PROCESS.format(first=first, second=second, arguments=arguments)
    found = tmp_path / "found.safetensors"
    process = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "ids.safetensors", found],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    loaded = load_file(found)
    torch.testing.assert_close(loaded["logits"], expected, rtol=0, atol=1e-5)
    assert loaded["more"].shape == (2, 15)


def test_the_file_stands_alone_and_the_config_names_it(saved):
    folder, _ = saved
    tree = ast.parse((folder / MODELING_FILE).read_text())
    imported = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"copy", "torch", "transformers"}
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == f"{Path(MODELING_FILE).stem}.PrunedLlamaForCausalLM"
    assert config["pruned"]["blocks"]["model.layers.0"] == {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 7,
    }  # fmt: skip
    assert (config["num_key_value_heads"], config["intermediate_size"]) == (4, 24)


def test_what_was_loaded_can_be_described_and_pruned_again(saved):
    folder, _ = saved
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    structure = describe(model)
    assert [d.num_groups for d in structure] == [2, 7, 4, 5]
    with torch.device("meta"):
        from_config = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert describe(from_config) == structure
    full = Plan.full(structure)
    plan = full.keep({"layers.1.heads": [3], "layers.0.channels": [5, 6]})
    with masked(model, structure, plan):
        expected = logits_of(model, IDS)
    slice_(model, structure, full, plan)
    again = finish(model, structure, plan)
    torch.testing.assert_close(logits_of(again, IDS), expected, rtol=0, atol=1e-5)
    assert [d.num_groups for d in describe(again)] == [2, 2, 1, 5]


def test_a_ragged_model_that_is_cut_to_one_width_stays_one_of_ours(saved):
    # Its config holds the widths of the unpruned model; that all layers agree again is no reason to change class.
    folder, _ = saved
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    structure = describe(model)
    full = Plan.full(structure)
    plan = full.keep({"layers.1.heads": [0, 1], "layers.0.channels": range(5)})
    slice_(model, structure, full, plan)
    finished = finish(model, structure, plan)
    assert [d.num_groups for d in describe(finished)] == [2, 5, 2, 5]


def test_query_heads_that_differ_from_layer_to_layer_are_described_again():
    model = tiny_model("qwen3")
    structure = describe(model, ("query_heads", "channels"))
    full = Plan.full(structure)
    plan = full.keep({"layers.0.query_heads": [0, 3, 5, 6]})
    with masked(model, structure, plan):
        expected = logits_of(model, IDS)
    slice_(model, structure, full, plan)
    finished = finish(model, structure, plan)
    torch.testing.assert_close(logits_of(finished, IDS), expected, rtol=0, atol=1e-5)
    again = describe(finished, ("query_heads", "channels"))
    assert [(d.num_groups, d.strata) for d in again if d.kind == "query_heads"] == [(4, 4), (8, 4)]
    assert [d.consumer.group_size for d in describe(finished) if d.kind == "heads"] == [4, 8]


def test_a_class_of_one_s_own_is_refused_with_the_way_out():
    class MyLlama(LlamaForCausalLM):
        pass

    model = tiny_model("llama")
    model.__class__ = MyLlama
    structure = describe(model)
    full = Plan.full(structure)
    plan = full.keep(RAGGED)
    slice_(model, structure, full, plan)
    with pytest.raises(ValueError, match=r"MyLlama is not a class of the transformers library.*--allocation balanced"):
        finish(model, structure, plan)


def test_a_stock_config_says_uniform_widths_and_nothing_else():
    structure = describe(tiny_model())
    full = Plan.full(structure)
    uniform = full.keep({d.name: range(2) for d in structure})
    assert stock_values(structure, uniform) == {
        "num_key_value_heads": 2, "num_attention_heads": 4, "intermediate_size": 2,
    }  # fmt: skip
    assert stock_values(structure, full.keep({"layers.0.heads": [0]})) is None
    unsayable = replace(structure, dimensions=tuple(replace(d, config=None) for d in structure))
    assert stock_values(unsayable, uniform) is None
    assert stock_values(unsayable, full) == {}


def test_the_model_without_its_head_loads_and_is_described_alike(saved, tmp_path):
    folder, _ = saved
    bare, whole = AutoModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found, expected = bare.eval()(IDS).last_hidden_state, whole.eval().model(IDS).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert [d.num_groups for d in describe(bare)] == [d.num_groups for d in describe(whole)]
    bare.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [d.num_groups for d in describe(again)] == [d.num_groups for d in describe(whole)]


def test_what_is_saved_again_carries_the_modeling_file(saved, tmp_path):
    folder, _ = saved
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    assert (tmp_path / MODELING_FILE).read_text() == (folder / MODELING_FILE).read_text()


def test_a_cut_of_a_module_that_the_model_does_not_have_is_refused(saved):
    config = AutoConfig.from_pretrained(saved[0])
    config.pruned["shapes"]["model.layers.7.mlp.up_proj.weight"] = [1, 32]
    with pytest.raises(ValueError, match=r"cut of 'model\.layers\.7\.mlp\.up_proj'"):
        AutoModelForCausalLM.from_config(config)


def test_the_text_is_that_of_any_stock_class():
    text = source("LlamaConfig", "LlamaForCausalLM", "llama")
    namespace: dict = {}
    exec(compile(text, "<text>", "exec"), namespace)
    assert issubclass(namespace["PrunedLlamaConfig"], LlamaConfig)
    assert issubclass(namespace["PrunedLlamaForCausalLM"], LlamaForCausalLM)
    with torch.device("meta"):
        untouched = namespace["PrunedLlamaForCausalLM"](namespace["PrunedLlamaConfig"](num_hidden_layers=1))
    assert untouched.config.pruned is None


@pytest.mark.parametrize("case", ["gemma2", "llama with biases"])
def test_a_head_count_that_no_stock_class_takes_is_exported_as_ours(case, tmp_path):
    # Three of four KV heads, six query heads: 32 is no multiple of six.
    if case == "gemma2":
        config = Gemma2Config(
            vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=4, head_dim=4, query_pre_attn_scalar=5, pad_token_id=None,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    else:
        model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    structure = describe(model)
    full = Plan.full(structure)
    plan = full.keep({d.name: [0, 1, 2] for d in structure if d.kind == "heads"})
    with masked(model, structure, plan):
        expected = logits_of(model, IDS)
    slice_(model, structure, full, plan)
    finished = finish(model, structure, plan)
    assert is_pruned_class(finished)
    save_checkpoint(tmp_path / "out", finished, None, record={}, card="")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    torch.testing.assert_close(logits_of(loaded, IDS), expected, rtol=0, atol=1e-5)


def test_a_description_of_another_version_is_refused(saved):
    config = AutoConfig.from_pretrained(saved[0])
    config.pruned["format"] = 99
    with pytest.raises(ValueError, match="of another version of loraprune"):
        AutoModelForCausalLM.from_config(config)


def test_the_file_of_a_family_whose_head_has_another_name_in_transformers_4_translates_it():
    made = source("GPTNeoXConfig", "GPTNeoXForCausalLM", "gpt_neox")
    assert 'kwargs.setdefault("key_mapping", {"^lm_head": "embed_out"})' in made
    assert "key_mapping" not in source("LlamaConfig", "LlamaForCausalLM", "llama")
    assert "strict" not in made  # a decorator of transformers 5
