from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoint.exports.folders import uniform_folder
from tests.checkpoint.exports.two_four import HEAD, linear_layers, two_four_folder
from tests.checkpoints import VOCABULARY
from transformers import GPT2Config, GPT2LMHeadModel

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.sparse_checkpoint import check_folder, copy_companions, read_sparse_checkpoint
from loraprune.record.places import OutputExistsError

DENSE = "model.layers.1.mlp.up_proj"


def test_the_sparse_layers_are_told_from_the_others(tmp_path: Path) -> None:
    model = two_four_folder(tmp_path, dense=[DENSE], shard_size="20KB")
    found = read_sparse_checkpoint(tmp_path)
    assert (found.dense, found.head) == ((DENSE,), HEAD)
    assert set(found.sparse) == set(linear_layers(model)) - {DENSE}
    assert len(found.tensors_by_file()) > 1
    assert sorted(name for names in found.tensors_by_file().values() for name in names) == sorted(model.state_dict())


def test_a_head_tied_to_the_embedding_is_known_for_one(tmp_path: Path) -> None:
    two_four_folder(tmp_path, tie_word_embeddings=True)
    assert read_sparse_checkpoint(tmp_path).head == HEAD


def test_a_dense_checkpoint_is_refused_with_the_command_that_makes_a_sparse_one(tmp_path: Path) -> None:
    uniform_folder(tmp_path)
    with pytest.raises(RuntimeFormatError, match=r"None of the 14 linear layers .* `loraprune oneshot MODEL .* 2:4 "):
        read_sparse_checkpoint(tmp_path)


def test_matrices_that_are_no_linear_layers_are_refused(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(RuntimeFormatError, match=r"no nn\.Linear in its blocks: GPT2LMHeadModel"):
        read_sparse_checkpoint(tmp_path)


@pytest.mark.parametrize("output", [".", "..", "../model"])
def test_the_result_never_takes_the_place_of_the_checkpoint(tmp_path: Path, output: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(RuntimeFormatError, match="would replace the checkpoint itself"):
        check_folder(folder, folder / output, overwrite=True)


def test_a_folder_that_holds_something_is_replaced_on_request_only(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pruning.json").write_text("")
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        check_folder(tmp_path / "model", tmp_path / "out", overwrite=False)
    check_folder(tmp_path / "model", tmp_path / "out", overwrite=True)


def test_config_and_tokenizer_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    folder, output = tmp_path / "model", tmp_path / "out"
    two_four_folder(folder, shard_size="20KB")
    for name in ("LICENSE", "modeling_own.py", "chat_template.jinja", "model-f16.gguf", "README.md"):
        (folder / name).write_text("x")
    (folder / "checkpoint-1").mkdir()
    output.mkdir()
    copy_companions(folder, output)
    copied = {path.name for path in output.iterdir()}
    assert copied == {path.name for path in folder.iterdir() if path.suffix in (".py", ".jinja", ".json")} - {
        "model.safetensors.index.json"
    } | {"LICENSE"}
    assert {"config.json", "tokenizer.json"} <= copied
