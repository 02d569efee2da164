from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.exports.folders import ragged_folder
from tests.checkpoint.exports.two_four import HEAD, linear_layers, two_four_folder
from transformers import PreTrainedModel

from loraprune.checkpoint.exports import compressed_tensors
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.compressed_tensors import REQUIREMENT, check_package, export_compressed_tensors

DENSE = "model.layers.0.mlp.down_proj"


def install(monkeypatch: pytest.MonkeyPatch, version: str, **members: Any) -> None:
    """Let compressed-tensors be installed in a version, with these members among its compressors."""
    for name in ("compressed_tensors", "compressed_tensors.compressors"):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(compressed_tensors, "version", lambda name: version)


@pytest.fixture
def writes() -> Any:
    """The installed package's compressors; skips where it cannot write 2:4 weights."""
    try:
        check_package()
    except RuntimeFormatError as error:
        pytest.skip(str(error))
    return sys.modules["compressed_tensors.compressors"]


def sparsity(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    found: dict[str, Any] = config["sparsity_config"]
    return found


def read_back(compressors: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a written folder, as the package that defines the layout reads them."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    reader = compressors.ModelCompressor.from_compression_config(config)
    return dict(reader.sparsity_compressor.decompress(str(folder)))


def assert_same(found: dict[str, torch.Tensor], model: PreTrainedModel) -> None:
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compressed_tensors", "compressed_tensors.compressors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(RuntimeFormatError, match=f'pip install "{REQUIREMENT}"$'):
        export_compressed_tensors(tmp_path / "model", tmp_path / "out")


def test_a_version_that_does_not_write_the_layout_is_named_with_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_four_folder(tmp_path / "model")
    install(monkeypatch, "0.20.0")
    with pytest.raises(
        RuntimeFormatError,
        match=rf'^compressed-tensors 0\.20\.0 does not write 2:4 weights, .* 0\.9 to 0\.14 do: .* "{REQUIREMENT}"$',
    ):
        export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_version_that_writes_the_layout_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "0.13.0", Sparse24BitMaskCompressor=object)
    check_package()


def test_widths_that_differ_from_layer_to_layer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "0.13.0", Sparse24BitMaskCompressor=object)
    monkeypatch.setattr(compressed_tensors, "read_sparse_checkpoint", lambda folder: Found(folder))
    ragged_folder(tmp_path / "model")
    with pytest.raises(RuntimeFormatError, match="which vLLM does not support"):
        export_compressed_tensors(tmp_path / "model", tmp_path / "out")


class Found:
    """A checkpoint as far as its config goes."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = self
        self.values = json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_the_package_reads_back_the_same_weights(tmp_path: Path, writes: Any, shard_size: str) -> None:
    model = two_four_folder(tmp_path / "model", dense=[DENSE], shard_size=shard_size)
    result = export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    assert (result.sparse, result.dense) == (len(linear_layers(model)) - 1, (DENSE,))
    assert result.size < result.size_before
    assert_same(read_back(writes, tmp_path / "out"), model)


def test_a_fully_sparse_model_targets_all_linear_layers_but_the_head(tmp_path: Path, writes: Any) -> None:
    model = two_four_folder(tmp_path / "model")
    export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    found = sparsity(tmp_path / "out")
    zeros = sum(int(tensor.eq(0).sum()) for tensor in model.state_dict().values())
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    assert found.pop("global_sparsity") == pytest.approx(zeros / weights)
    found.pop("registry_requires_subclass", None)
    assert found == {
        "format": "sparse-24-bitmask",
        "sparsity_structure": "2:4",
        "targets": ["Linear"],
        "ignore": [HEAD],
    }


def test_layers_are_named_where_only_some_are_sparse(tmp_path: Path, writes: Any) -> None:
    model = two_four_folder(tmp_path / "model", dense=[DENSE])
    export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    found = sparsity(tmp_path / "out")
    assert set(found["targets"]) == set(linear_layers(model)) - {DENSE}
    assert set(found["ignore"]) == {DENSE, HEAD}


def test_the_tensors_have_the_names_that_vllm_looks_for(tmp_path: Path, writes: Any) -> None:
    model = two_four_folder(tmp_path / "model", dense=[DENSE])
    export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    sparse = set(linear_layers(model)) - {DENSE}
    packed = {f"{name}.{part}" for name in sparse for part in ("compressed", "bitmask", "shape")}
    assert set(stored) == packed | (set(model.state_dict()) - {f"{name}.weight" for name in sparse})


def test_every_tensor_is_in_the_index_of_a_folder_of_several_files(tmp_path: Path, writes: Any) -> None:
    two_four_folder(tmp_path / "model", shard_size="20KB")
    export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = {path.name: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in stored.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensors in stored.values() for tensor in tensors.values()
    )


def test_no_negative_zero_is_kept(tmp_path: Path, writes: Any) -> None:
    model = two_four_folder(tmp_path / "model")
    for layer in linear_layers(model).values():
        layer.weight.data[:4] = -0.0  # whole rows, so that zeros have to fill up
    model.save_pretrained(tmp_path / "model")
    export_compressed_tensors(tmp_path / "model", tmp_path / "out")
    for tensor in load_file(tmp_path / "out" / "model.safetensors").values():
        assert not (tensor.eq(0) & tensor.float().signbit()).any()
