from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import byte_model, tiny_checkpoint, tiny_tokenizer

from loraprune.architectures import UnsupportedArchitectureError, supported
from loraprune.checkpoint.load import (
    CheckpointError,
    checkpoint_dtype,
    give_pad_token_,
    load_config,
    load_model,
    load_tokenizer,
    meta_model,
    working_dtype,
)

CPU = torch.device("cpu")


def write_config(folder: Path, **values: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


class TestConfig:
    def test_a_folder_without_config_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=f"{tmp_path} is not a checkpoint: it has no config.json"):
            load_config(str(tmp_path))

    def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(self) -> None:
        with pytest.raises(CheckpointError, match=r"\./missing is not a checkpoint"):
            load_config("./missing")

    @pytest.mark.parametrize("family", ["xlnet", "not-even-transformers-knows-it"])
    def test_an_unknown_family_is_named_with_those_that_are_supported(self, tmp_path: Path, family: str) -> None:
        name = write_config(tmp_path, model_type=family)
        with pytest.raises(UnsupportedArchitectureError, match=f"'{family}' are not supported") as caught:
            load_config(name)
        assert ", ".join(supported()) in str(caught.value)

    def test_code_of_the_checkpoints_own_is_not_run(self, tmp_path: Path) -> None:
        name = write_config(tmp_path, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
        (tmp_path / "configuration_own.py").write_text("raise SystemExit('this code was run')")
        with pytest.raises(CheckpointError, match=r"needs code from its own repository.*--trust-remote-code"):
            load_config(name)

    @pytest.mark.parametrize("text", ["{", "[]", "{}"])
    def test_a_config_that_cannot_be_read_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=str(tmp_path)) as caught:
            load_config(str(tmp_path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("stored", "dtype"),
        [
            ("bfloat16", torch.bfloat16),
            ("torch.float16", torch.float16),
            (torch.bfloat16, torch.bfloat16),
            (None, torch.float32),
        ],
    )
    def test_the_stored_dtype_is_read_from_the_config(self, stored: Any, dtype: torch.dtype) -> None:
        config = byte_model().config
        config.dtype = stored
        assert checkpoint_dtype(config) == dtype

    @pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
    def test_a_cpu_works_in_32_bits_and_an_accelerator_in_those_of_the_checkpoint(
        self, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert working_dtype(stored, CPU) == torch.float32
        for supported_there, dtype in ((True, stored), (False, torch.float32)):
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, found=supported_there, **__: found)
            assert working_dtype(stored, torch.device("cuda")) == dtype

    def test_a_quantized_checkpoint_is_refused(self, tmp_path: Path) -> None:
        config = byte_model().config.to_dict()
        name = write_config(tmp_path, **config, quantization_config={"quant_method": "gptq", "bits": 4})
        with pytest.raises(CheckpointError, match=rf"{tmp_path} is quantized.*Name the original checkpoint"):
            load_config(name)

    def test_a_meta_model_takes_no_memory(self) -> None:
        model = meta_model(byte_model().config)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


class TestTokenizer:
    def test_a_checkpoint_without_one_is_named_with_the_way_out(self, tmp_path: Path) -> None:
        byte_model().save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=f"(?s){tmp_path}.*--tokenizer"):
            load_tokenizer(str(tmp_path))

    @pytest.mark.parametrize("removed", [[], ["eos_token"], ["eos_token", "bos_token"]])
    def test_a_tokenizer_without_pad_token_pads_with_a_token_that_it_has(self, removed: list[str]) -> None:
        tokenizer = tiny_tokenizer()
        for name in removed:
            setattr(tokenizer, name, None)
        vocabulary = len(tokenizer)
        give_pad_token_(tokenizer)
        assert tokenizer.pad_token_id is not None
        assert len(tokenizer) == vocabulary

    def test_a_pad_token_stays(self) -> None:
        tokenizer = tiny_tokenizer(pad=True)
        give_pad_token_(tokenizer)
        assert tokenizer.pad_token == "<pad>"


class TestWeights:
    def test_weights_are_loaded_in_the_dtype_asked_for(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        model = load_model(str(tmp_path), torch.bfloat16, CPU)
        assert model.dtype == torch.bfloat16

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"holds its weights in pytorch_model.bin, .* Convert them"):
            load_model(str(tmp_path), torch.float32, CPU)

    def test_a_broken_file_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
        with pytest.raises(CheckpointError, match=f"The weights of {tmp_path} cannot be loaded") as caught:
            load_model(str(tmp_path), torch.float32, CPU)
        assert "\n" not in str(caught.value)

    def test_missing_tensors_are_counted_and_the_first_is_named(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.layers.1.mlp.down_proj.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"1 are missing, the first is model\.layers\.1\.mlp\.down_proj"):
            load_model(str(tmp_path), torch.float32, CPU)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say which memory is mapped")
def test_weights_in_their_own_dtype_are_mapped_and_not_read(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "large", hidden_size=1024, intermediate_size=8192, num_hidden_layers=4)
    script = f"""
import torch
from pathlib import Path
from loraprune.checkpoint.source import ModelSource

def own():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

source = ModelSource.of({str(checkpoint)!r})
shapes = source.shapes
before = own()
model = source.load(torch.float32, torch.device("cpu"))
print((own() - before) / sum(p.nbytes for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 0.5
