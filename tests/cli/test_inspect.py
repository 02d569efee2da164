from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.checkpoints import byte_model
from tests.cli.conftest import Command
from tests.zoo import ROWS
from tests.zoo.plans import ragged_plan
from transformers import ElectraConfig

from loraprune import architectures
from loraprune.architectures import read_spec, spec_for
from loraprune.checkpoint.save import finish
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

BY_NAME = {row.name: row for row in ROWS}


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def only_config(tmp_path: Path) -> Path:
    """A checkpoint without weights and tokenizer."""
    byte_model().config.save_pretrained(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    return tmp_path / "model"


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A checkpoint of a family that transformers knows and loraprune does not."""
    config = ElectraConfig(
        vocab_size=40,
        embedding_size=32,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        architectures=["ElectraForMaskedLM"],
    )
    assert config.model_type not in architectures.supported()
    config.save_pretrained(tmp_path / "unknown")
    return tmp_path / "unknown"


def checkpoint_of(name: str, folder: Path) -> Path:
    model = BY_NAME[name].model()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_text_tells_what_can_be_pruned_from_the_config_alone(run: Command, only_config: Path) -> None:
    finished = run("inspect", only_config)
    assert finished.code == 0
    out = words(finished.out)
    assert f"{only_config}: llama, 2 layers, hidden size 32, 35.3 k parameters" in out
    # One group: 8 rows of q and columns of o, 4 rows of k and v; one channel: a row of gate and up, a column of down.
    assert f"heads one KV head with its 2 query heads 4 {24 * 32}" in out
    assert f"channels one FFN channel 64 {3 * 32}" in out
    assert "heads that may stay: 1, 2, 4." in out
    assert "channels that may stay" not in out  # any number
    # A query head: 4 rows of q and columns of o.
    assert f"With query_heads in --dimensions: one query head, 4 x 2 a layer, {8 * 32} parameters each" in out
    assert "; instead of heads." in out


def test_it_says_what_will_load_a_result(run: Command, only_config: Path) -> None:
    lines = run("inspect", str(only_config)).out.splitlines()
    after = lines[lines.index("Pruned by half, it loads in:") + 1 :]
    assert [line.strip() for line in after][:2] == ["transformers >= 4.57 (as it is)", "vLLM (as it is)"]
    found = json.loads(run("inspect", str(only_config), "--json").out)["loads_in"]
    assert [line.strip() for line in after] == found


def test_json_is_the_same_with_every_layer(run: Command, only_config: Path) -> None:
    finished = run("inspect", only_config, "--json")
    assert finished.code == 0
    found = json.loads(finished.out)
    model = byte_model()
    assert found["parameters"] == model.num_parameters()
    assert found["prunable_parameters"] == 2 * (4 * 24 * 32 + 64 * 3 * 32)
    assert found["legal_counts"] == {"heads": [1, 2, 4]}
    assert found["multiples"] == {"channels": 1}
    assert found["query_heads_per_kv_head"] == 2
    assert found["kinds"] == ["heads", "channels"]
    assert found["other_kinds"] == {"query_heads": ["instead of heads"], "blocks": ["alone"], "hidden": ["alone"]}
    assert (found["model_type"], found["dtype"]) == ("llama", "float32")
    names = [dimension["name"] for dimension in found["dimensions"]]
    assert names == ["layers.0.heads", "layers.0.channels", "layers.1.heads", "layers.1.channels"]
    modules = dict(model.named_modules())
    for dimension in found["dimensions"]:
        members = [member["module"] for member in dimension["members"]]
        assert members[-1] == dimension["consumer"]
        assert set(members) <= set(modules)
    assert sum(d["groups"] * d["parameters_per_group"] for d in found["dimensions"]) == found["prunable_parameters"]


def test_other_kinds_can_be_asked_for(run: Command, only_config: Path) -> None:
    found = json.loads(run("inspect", only_config, "--dimensions", "query_heads", "--json").out)
    assert found["kinds"] == ["query_heads"]
    whole = {"blocks": ["alone"], "hidden": ["alone"]}
    assert found["other_kinds"] == {"heads": ["instead of query_heads"], "channels": [], **whole}
    assert "query_heads that may stay of each KV head: 1, 2." in words(
        run("inspect", only_config, "--dimensions=query_heads").out
    )
    wrong = run("inspect", only_config, "--dimensions", "heads,chanels")
    assert wrong.code == 2
    assert "'chanels'; it has heads, query_heads, channels, blocks, hidden." in words(wrong.err)


def test_layers_can_be_kept(run: Command, only_config: Path) -> None:
    assert "Layers that keep everything: 1." in run("inspect", only_config, "--keep-layers=-1").out
    assert json.loads(run("inspect", only_config, "--keep-layers", "0", "--json").out)["keep_layers"] == [0]
    outside = run("inspect", only_config, "--keep-layers", "0,2")
    assert outside.code == 2
    assert "no layer 2 to keep: the model has layers 0 to 1." in words(outside.err)
    assert "write it like 0,1,-1" in words(run("inspect", only_config, "--keep-layers", "first").err)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_family_is_understood(run: Command, tmp_path: Path, row) -> None:
    checkpoint_of(row.name, tmp_path)
    found = json.loads(run("inspect", tmp_path, "--json").out)
    assert found["model_type"] == row.config().model_type
    assert tuple(found["kinds"]) == row.kinds
    structure = describe(row.model())
    assert set(found["other_kinds"]) == {*row.others, *structure.whole}
    assert found["parameters"] == structure.num_parameters
    assert [d["groups"] for d in found["dimensions"]] == [d.num_groups for d in structure]
    assert run("inspect", tmp_path).code == 0


def test_what_no_stock_config_can_say_is_told(run: Command, tmp_path: Path) -> None:
    out = words(run("inspect", checkpoint_of("convnext", tmp_path)).out)
    assert "convnext, 5 layers, " in out  # its hidden size differs from stage to stage
    assert "channels by layer: 32, 48, 64, 64, 96." in out
    assert "No stock config can express fewer channels: the result is saved with its own modeling file." in out
    out = words(run("inspect", checkpoint_of("bert", tmp_path)).out)
    assert "With heads in --dimensions: one head, 4 a layer, " in out
    assert "; the result is saved with its own modeling file." in out


@pytest.mark.parametrize("name", ["llama", "convnext", "bert", "qwen2_moe"])
def test_a_result_whose_widths_differ_from_layer_to_layer_is_understood(
    run: Command, tmp_path: Path, name: str
) -> None:
    model = BY_NAME[name].model()
    structure = describe(model)
    plan = ragged_plan(structure)
    slice_(model, structure, Plan.full(structure), plan)
    finish(model, structure, plan).config.save_pretrained(tmp_path)
    found = json.loads(run("inspect", tmp_path, "--json").out)
    assert found["model_type"] == name
    assert {d["name"]: d["groups"] for d in found["dimensions"]} == {d.name: plan.count(d.name) for d in structure}
    by_layer = ", ".join(str(plan.count(d.name)) for d in structure.of_kind("channels"))
    out = words(run("inspect", tmp_path).out)
    assert len(structure.of_kind("channels")) == 1 or f"channels by layer: {by_layer}." in out


def test_groups_of_experts_are_counted_for_each(run: Command, tmp_path: Path) -> None:
    row = BY_NAME["mixtral"]
    config = row.config()
    out = words(run("inspect", checkpoint_of("mixtral", tmp_path)).out)
    experts = config.num_local_experts
    assert f"one FFN channel of one expert {experts} x {config.intermediate_size} {3 * config.hidden_size}" in out
    assert "With experts in --dimensions: one expert, " in out


def test_a_family_whose_layers_share_their_widths_says_why(run: Command, tmp_path: Path) -> None:
    checkpoint_of("t5", tmp_path)
    assert "All layers keep the same widths: all blocks of a stack share" in words(run("inspect", tmp_path).out)
    kept = run("inspect", tmp_path, "--keep-layers", "0")
    assert kept.code == 2
    assert "Layers cannot be kept in a t5 model whose heads are pruned: all blocks of a stack share" in words(kept.err)


def test_a_large_model_takes_no_memory_for_weights(run: Command, tmp_path: Path) -> None:
    config = byte_model().config
    config.update({"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 128})
    config.update({"num_attention_heads": 64, "num_key_value_heads": 8, "dtype": "bfloat16"})
    config.save_pretrained(tmp_path)
    finished = run("inspect", tmp_path, "--json")
    found = json.loads(finished.out)
    assert found["parameters"] > 68e9
    assert (found["multiples"], found["dtype"]) == ({"channels": 128}, "bfloat16")
    assert "channels that may stay: multiples of 128." in run("inspect", tmp_path).out


def test_an_unknown_family_is_shown_with_a_start_for_its_description(run: Command, unknown: Path) -> None:
    finished = run("inspect", unknown)
    assert finished.code == 0
    assert f"{unknown}: ElectraForMaskedLM (electra), " in finished.out
    assert "electra.encoder.layer: 2 blocks (0, 1)\n" in finished.out
    assert "  intermediate.dense          Linear 32 -> 24 with bias\n" in finished.out
    assert "  output.LayerNorm            LayerNorm 32\n" in finished.out
    assert "        widths:\n          intermediate_size: groups\n" in finished.out
    assert "TODO attention.self: " in finished.out


def test_json_of_an_unknown_family_holds_its_layers_and_the_start(run: Command, unknown: Path) -> None:
    found = json.loads(run("inspect", unknown, "--json").out)
    assert (found["described"], found["model_class"]) == (False, "ElectraForMaskedLM")
    (stack,) = found["stacks"]
    (kind,) = stack["kinds"]
    assert kind["indices"] == [0, 1]
    layers = {layer["module"]: layer for layer in kind["layers"]}
    assert (layers["output.dense"]["inputs"], layers["output.dense"]["outputs"]) == (24, 32)
    assert yaml.safe_load(found["draft"])["model_type"] == "electra"


def test_the_start_of_a_description_can_be_written_and_used_as_it_is(
    run: Command, unknown: Path, tmp_path: Path
) -> None:
    start = tmp_path / "electra.yaml"
    assert run("inspect", unknown, "--draft", start).code == 0
    assert read_spec(start).model_type == "electra"
    finished = run("inspect", unknown, "--architecture", start)
    assert finished.code == 0
    # One row of 32 with its bias, one column of 32.
    assert "channels one FFN channel 24 65" in words(finished.out)
    again = run("inspect", unknown, "--draft", start)
    assert again.code == 2
    assert f"{start} exists." in again.err


def test_the_description_of_a_known_family_can_be_written(run: Command, only_config: Path, tmp_path: Path) -> None:
    assert run("inspect", only_config, "--draft", tmp_path / "llama.yaml").code == 0
    assert read_spec(tmp_path / "llama.yaml") == spec_for(byte_model().config)


def test_a_description_that_cannot_be_understood_is_refused(run: Command, unknown: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model_type: electra\nblock: encoder.layer\n")
    finished = run("inspect", unknown, "--architecture", wrong)
    assert (finished.code, finished.out) == (2, "")
    assert f"{wrong}: unknown key 'block'; allowed: model_type, stacks" in words(finished.err)


def test_a_description_of_another_family_is_refused(run: Command, unknown: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "model_type: elektra\nblocks: electra.encoder.layer\n"
        "dimensions:\n  - {kind: channels, members: {up: channel}, consumer: {down: channel}}\n"
    )
    finished = run("inspect", unknown, "--architecture", other)
    assert finished.code == 2
    assert f"{other} describes models of type 'elektra', but {unknown} is of type 'electra'." in words(finished.err)


REMOTE_CODE = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width=32, ffn=48, **rest):
        self.width, self.ffn = width, ffn
        super().__init__(**rest)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up, self.down = nn.Linear(config.width, config.ffn), nn.Linear(config.ffn, config.width)


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(10, config.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(2)])
        self.post_init()
"""


@pytest.mark.usefixtures("_own_code")
def test_a_model_that_brings_its_own_code_can_be_described(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(REMOTE_CODE)
    brought = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": brought}))
    refused = run("inspect", folder)
    assert refused.code == 2
    assert "--trust-remote-code" in refused.err
    start = tmp_path / "own.yaml"
    finished = run("inspect", folder, "--trust-remote-code", "--draft", start)
    assert finished.code == 0
    assert "OwnForCausalLM (own)" in finished.out
    assert read_spec(start).stacks[0].dimensions[0].widths[0].name == "ffn"
    finished = run("inspect", folder, "--trust-remote-code", "--architecture", start)
    assert "channels one FFN channel 48 65" in words(finished.out)


def test_a_family_that_transformers_does_not_know_is_refused(run: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    finished = run("inspect", tmp_path)
    assert (finished.code, finished.out) == (2, "")
    assert "'unheard-of' are not supported. Supported types: " in finished.err


def test_a_config_that_makes_no_model_is_refused(run: Command, unknown: Path) -> None:
    values = json.loads((unknown / "config.json").read_text())
    values["num_attention_heads"] = 0
    (unknown / "config.json").write_text(json.dumps(values))
    finished = run("inspect", unknown)
    assert (finished.code, finished.out) == (2, "")
    assert "num_attention_heads = 0; it must be 1 or more" in words(finished.err)


def test_a_missing_folder_and_an_unknown_option_are_refused(run: Command, tmp_path: Path) -> None:
    missing = run("inspect", tmp_path / "missing")
    assert missing.code == 2
    assert f"{tmp_path / 'missing'} is not a checkpoint" in missing.err
    unknown = run("inspect", tmp_path, "--jason")
    assert unknown.code == 2
    assert "--jason" in unknown.err
