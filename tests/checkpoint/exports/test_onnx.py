from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.exports.folders import change_config
from tests.checkpoints import VOCABULARY, byte_model
from tests.models import logits_of, token_ids, with_lora
from tests.thinned import thinned
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    ViTConfig,
)

from loraprune.checkpoint.exports import onnx
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.onnx import write_onnx
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RAGGED = {
    "layers.0.heads": (1, 3),
    "layers.0.channels": tuple(range(40)),
    "layers.1.heads": (0, 1, 2),
    "layers.1.channels": tuple(range(3, 53)),
}
CLASSIFIERS = [
    ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    ),
    ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=16),
]


def run(file: Path, **tensors: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in tensors.items()}
    return torch.from_numpy(session.run(["logits"], feed)[0])


@pytest.fixture(scope="module", params=thinned(["llama", "qwen3"]))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A language model, and what became of it."""
    folder = tmp_path_factory.mktemp("onnx")
    model = byte_model(request.param, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    return model, write_onnx(folder / "model", folder / "m.onnx")


@pytest.mark.slow
def test_onnxruntime_computes_the_same_for_texts_of_any_number_and_length(written: tuple[Any, Any]) -> None:
    model, result = written
    assert result.model_class == type(model).__name__
    assert result.inputs == {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
    assert result.difference is not None
    assert result.size == result.file.stat().st_size
    model = copy.deepcopy(model).float()  # the file is in 32 bits, whatever the checkpoint is in
    for batch, tokens in ((1, 1), (4, 3), (2, 60)):
        ids = token_ids(batch, tokens, vocabulary=VOCABULARY)
        logits = run(result.file, input_ids=ids, attention_mask=torch.ones_like(ids))
        # 32 bits on both sides: only the order of the sums differs, by a share of the largest logit.
        expected = logits_of(model, ids)
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_padding_on_the_left_changes_nothing(written: tuple[Any, Any]) -> None:
    file = written[1].file
    ids = token_ids(1, 9, vocabulary=VOCABULARY)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    # The rotary embedding sees differences of positions only.
    torch.testing.assert_close(
        run(file, input_ids=padded, attention_mask=mask)[:, 4:],
        run(file, input_ids=ids, attention_mask=torch.ones_like(ids)),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.full
@pytest.mark.slow
def test_widths_that_differ_from_layer_to_layer_are_no_hindrance(tmp_path: Path) -> None:
    model = byte_model()
    structure = describe(model)
    full = Plan.full(structure)
    plan = Plan({**full.kept, **RAGGED})
    adapted = with_lora(model)
    slice_(adapted, structure, full, plan)
    ids = token_ids(2, 7, vocabulary=VOCABULARY)
    expected = logits_of(adapted, ids)
    save_checkpoint(tmp_path / "model", finish(adapted, structure, plan), None, record={}, card="# A card\n")
    result = write_onnx(tmp_path / "model", tmp_path / "m.onnx")
    logits = run(result.file, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("config", thinned(CLASSIFIERS), ids=lambda config: config.model_type)
def test_image_classifiers_are_written_too(tmp_path: Path, config: PretrainedConfig) -> None:
    model = AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    result = write_onnx(tmp_path / "model", tmp_path / "m.onnx")
    size = config.image_size
    assert result.inputs == {"pixel_values": ("batch", 3, size, size)}
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(run(result.file, pixel_values=images), model(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.full
@pytest.mark.slow
def test_another_language_model_is_written_too(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    assert write_onnx(tmp_path, tmp_path / "m.onnx").model_class == "GPT2LMHeadModel"


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_model(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    export = onnx._export

    def worn(logits: Any, inputs: Any) -> Any:
        program = export(logits, inputs)
        head = logits.model.lm_head
        head.weight = torch.nn.Parameter(1.01 * head.weight.detach())
        return program

    monkeypatch.setattr(onnx, "_export", worn)
    with pytest.raises(RuntimeFormatError, match="onnxruntime computes other logits than torch"):
        write_onnx(tmp_path / "model", tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_without_onnxruntime_the_file_is_written_unchecked_and_names_no_file_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_model(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    result = write_onnx(tmp_path / "model", tmp_path / "m.onnx")
    assert result.difference is None
    assert b"site-packages" not in result.file.read_bytes()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeFormatError, match=rf'needs the package {package}: pip install "loraprune\[onnx\]"'):
        write_onnx(tmp_path, tmp_path / "m.onnx")


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    byte_model().save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["T5ForConditionalGeneration"])
    with pytest.raises(RuntimeFormatError, match="cannot write a T5ForConditionalGeneration as ONNX"):
        write_onnx(tmp_path, tmp_path / "m.onnx")
