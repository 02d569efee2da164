from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from loraprune.checkpoint.exports.appearing import appearing_files, check_free
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError


def test_all_files_of_a_finished_block_lie_beside_each_other(tmp_path: Path) -> None:
    with appearing_files(tmp_path / "new" / "model.onnx") as path:
        path.write_text("graph")
        path.with_name("model.onnx.data").write_text("tensors")
        assert not (tmp_path / "new" / "model.onnx").exists()
    assert {file.name: file.read_text() for file in (tmp_path / "new").iterdir()} == {
        "model.onnx": "graph",
        "model.onnx.data": "tensors",
    }


def test_they_are_for_all_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with appearing_files(tmp_path / "model.onnx") as path:
            path.touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.onnx").stat().st_mode) == 0o640


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    output = tmp_path / "model.gguf"
    output.write_text("old")

    def fail() -> None:
        with appearing_files(output) as path:
            path.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    assert output.read_text() == "old"


def test_an_existing_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    output = tmp_path / "model.gguf"
    check_free(output, overwrite=False, holds=b"GGUF")
    output.write_text("GGUF old")
    check_free(output, overwrite=True, holds=b"GGUF")
    with pytest.raises(RuntimeFormatError, match=r"model\.gguf exists.*--overwrite"):
        check_free(output, overwrite=False, holds=b"GGUF")
    with pytest.raises(RuntimeFormatError, match="is a folder; name a file with -o"):
        check_free(tmp_path, overwrite=True, holds=b"GGUF")


def test_a_file_of_another_format_is_never_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("three years")
    with pytest.raises(RuntimeFormatError, match="has another format, so it is not replaced, not even with"):
        check_free(weights, overwrite=True, holds=b"GGUF")
    assert weights.read_text() == "three years"


def test_what_runs_left_that_were_killed_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".model.gguf.0123456789abcdef.partial").mkdir()
    with appearing_files(tmp_path / "model.gguf") as path:
        path.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
