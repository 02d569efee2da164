from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoint.exports.folders import ragged_folder, uniform_folder
from tests.checkpoint.exports.tokenizers import byte_level
from tests.checkpoint.exports.two_four import two_four_folder
from tests.cli.conftest import Command
from tokenizers import pre_tokenizers

from loraprune.checkpoint.exports import compressed_tensors, semi_structured
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.compressed_tensors import check_package

pytest.importorskip("gguf", reason="gguf is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    uniform_folder(tmp_path / "model")
    return tmp_path / "model"


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_gguf_says_what_was_written_and_how_to_run_it(run: Command, folder: Path) -> None:
    finished = run("export", folder, "--format", "gguf")
    assert (finished.code, finished.err) == (0, "")
    file = folder / "model-f16.gguf"
    first, second = finished.out.splitlines()
    assert (
        first == f"{file}: {file.stat().st_size / 1e6:.1f} MB, GGUF of the architecture llama, tokenizer gpt2 (gpt-2)"
    )
    assert second == f"Run it: llama-cli -m {file}"


def test_the_file_and_its_numbers_can_be_chosen(run: Command, tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model")
    file = tmp_path / "new" / "m.gguf"
    finished = run("export", tmp_path / "model", "--format", "gguf", "--outtype", "q8_0", "-o", file)
    assert finished.code == 0
    assert "architecture deci" in finished.out
    assert "Note: 4 matrices are in f16, because q8_0 needs rows of a multiple of 32." in finished.out
    assert [path.name for path in file.parent.iterdir()] == ["m.gguf"]


def test_an_existing_file_is_replaced_on_request_only(run: Command, folder: Path) -> None:
    file = folder / "model-f16.gguf"
    file.write_text("GGUF mine")
    refused = run("export", folder, "--format", "gguf")
    assert (refused.code, refused.out) == (2, "")
    assert one_line(refused.err) == f"error: {file} exists. Name another file with -o, or pass --overwrite."
    assert file.read_text() == "GGUF mine"
    assert run("export", folder, "--format", "gguf", "--overwrite").code == 0
    assert file.read_bytes()[:4] == b"GGUF"


def test_a_way_to_cut_text_can_be_chosen_where_none_is_equal(run: Command, tmp_path: Path) -> None:
    uncut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    uniform_folder(tmp_path / "model", tokenizer=byte_level(uncut))
    refused = run("export", tmp_path / "model", "--format", "gguf")
    assert refused.code == 2
    assert "Pass --pre-tokenizer" in one_line(refused.err)
    finished = run("export", tmp_path / "model", "--format", "gguf", "--pre-tokenizer", "qwen2")
    assert finished.code == 0
    assert "tokenizer gpt2 (qwen2)" in finished.out
    assert "Note: text is split by qwen2" in finished.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format", "tflite"],
            "There is no format 'tflite'; choose safetensors, gguf, onnx, semi-structured or compressed-tensors.",
        ),
        (
            ["--format", "gguf", "--outtype", "Q4_K_M"],
            "There is no outtype 'Q4_K_M'; choose one of f16, f32, q8_0. For another type, write f16 and convert that "
            "file with llama.cpp: llama-quantize IN.gguf OUT.gguf TYPE",
        ),
        (["--format", "onnx", "--outtype", "f16"], "--outtype is for --format gguf; leave it out."),
        (["--format", "onnx", "--pre-tokenizer", "qwen2"], "--pre-tokenizer is for --format gguf; leave it out."),
        (["--format", "semi-structured", "--outtype", "f16"], "--outtype is for --format gguf; leave it out."),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Command, folder: Path, options: list[str], message: str) -> None:
    finished = run("export", folder, *options)
    assert (finished.code, finished.out) == (2, "")
    assert one_line(finished.err) == f"error: {message}"


def test_what_is_no_checkpoint_is_refused(run: Command, tmp_path: Path) -> None:
    for name, message in (("missing", "is not a folder"), (".", "is not a checkpoint: it has no config.json")):
        finished = run("export", tmp_path / name, "--format", "gguf")
        assert (finished.code, finished.out) == (2, "")
        assert message in one_line(finished.err)


def test_a_gguf_file_is_not_written_again(run: Command, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    finished = run("export", tmp_path / "m.gguf", "--format", "gguf")
    assert (finished.code, finished.out) == (2, "")
    assert "m.gguf is a GGUF file already" in one_line(finished.err)


def test_the_type_of_matrices_is_named_in_any_case(run: Command, folder: Path) -> None:
    assert run("export", folder, "--format", "gguf", "--outtype", "Q8_0").code == 0
    assert (folder / "model-q8_0.gguf").is_file()


def test_gguf_says_that_the_chat_template_is_in_the_file(run: Command, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    first = run("export", folder, "--format", "gguf").out.splitlines()[0]
    assert first.endswith("tokenizer gpt2 (gpt-2), with the chat template")


def test_a_ragged_model_that_llama_cpp_cannot_compute_is_refused(run: Command, tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model", "qwen3")
    finished = run("export", tmp_path / "model", "--format", "gguf")
    assert (finished.code, finished.out) == (2, "")
    assert "does not normalize queries and keys as qwen3 does. transformers loads the folder" in one_line(finished.err)
    assert not list((tmp_path / "model").glob("*.gguf"))


@pytest.mark.slow
def test_onnx_says_how_far_it_is_from_torch(run: Command, folder: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    finished = run("export", folder, "--format", "onnx")
    assert (finished.code, finished.err) == (0, "")
    first, second, third = finished.out.splitlines()
    assert first.startswith(f"{folder / 'model.onnx'}: ")
    assert first.endswith("MB, ONNX of LlamaForCausalLM")
    assert second.startswith("Checked in onnxruntime: its logits differ from torch's by up to ")
    assert "input_ids (batch, sequence), attention_mask (batch, sequence)" in third


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that multiplies semi-structured tensors, by its own account."""
    monkeypatch.setattr(semi_structured, "check_semi_structured", lambda **question: None)


@pytest.mark.usefixtures("hardware")
def test_semi_structured_says_what_was_written_and_how_to_load_it(run: Command, tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model", dense=["model.layers.0.mlp.up_proj"])
    finished = run("export", tmp_path / "model", "--format", "semi-structured")
    assert (finished.code, finished.err) == (0, "")
    output = tmp_path / "model-semi-structured"
    first, second, third = finished.out.splitlines()
    before, after = (
        sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
        for folder in (tmp_path / "model", output)
    )
    assert first == f"{output}: {after:.1f} MB of weights ({before:.1f} MB before), 13 layers stored as 2:4"
    assert f"load_semi_structured('{output}')" in second
    assert third == "Note: 1 of the linear layers is not 2:4 and stays as it is: model.layers.0.mlp.up_proj."
    assert (output / "tokenizer.json").is_file()


@pytest.mark.usefixtures("hardware")
def test_a_folder_is_replaced_on_request_only_and_never_the_checkpoint(run: Command, tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model")
    output = tmp_path / "out"
    output.mkdir()
    (output / "semi_structured.json").write_text("old")
    (output / "vocab.txt").write_text("old")
    options = ("export", tmp_path / "model", "--format", "semi-structured")
    refused = run(*options, "-o", output)
    assert (refused.code, refused.out) == (2, "")
    assert "pass --overwrite" in one_line(refused.err)
    assert run(*options, "-o", output, "--overwrite").code == 0
    assert not (output / "vocab.txt").exists()
    for own in (tmp_path / "model", tmp_path):
        refused = run(*options, "-o", own, "--overwrite")
        assert refused.code == 2
        assert "would replace the checkpoint itself" in one_line(refused.err)
    assert (tmp_path / "model" / "config.json").is_file()


def test_semi_structured_is_refused_with_the_reason_where_the_hardware_is_missing(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    two_four_folder(tmp_path / "model")
    finished = run("export", tmp_path / "model", "--format", "semi-structured")
    assert (finished.code, finished.out) == (2, "")
    assert "need a CUDA device, but torch finds none" in one_line(finished.err)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("hardware")
def test_a_checkpoint_without_2_4_zeros_is_refused_with_the_way_to_one(run: Command, folder: Path) -> None:
    finished = run("export", folder, "--format", "semi-structured")
    assert (finished.code, finished.out) == (2, "")
    assert "is 2:4-sparse; `loraprune oneshot MODEL --criterion wanda --sparsity 2:4" in one_line(finished.err)


def test_compressed_tensors_says_what_was_written_and_what_reads_it(run: Command, tmp_path: Path) -> None:
    try:
        check_package()
    except RuntimeFormatError as error:
        pytest.skip(str(error))
    two_four_folder(tmp_path / "model")
    finished = run("export", tmp_path / "model", "--format", "compressed-tensors", "-o", tmp_path / "out")
    assert (finished.code, finished.err) == (0, "")
    first, second = finished.out.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: ")
    assert first.endswith("14 layers stored as 2:4")
    assert second.startswith(f"Run it: vllm serve {tmp_path / 'out'}, with a vLLM from before")


def test_compressed_tensors_is_refused_where_the_package_cannot_write_it(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*question: str) -> None:
        raise RuntimeFormatError("the package is missing")

    monkeypatch.setattr(compressed_tensors, "require", missing)
    two_four_folder(tmp_path / "model")
    finished = run("export", tmp_path / "model", "--format", "compressed-tensors")
    assert (finished.code, finished.out) == (2, "")
    assert one_line(finished.err) == "error: the package is missing"
