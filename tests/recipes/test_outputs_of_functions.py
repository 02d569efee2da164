"""What the commands refuse to replace, the functions behind them refuse, too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import byte_model

import loraprune
from loraprune import EvaluationConfig, OneshotConfig, OutputExistsError, PruneResult, RunOptions, evaluate
from loraprune.recipes.report import report_again
from loraprune.report.page import write_report

Writer = Callable[[PruneResult, Path], Any]

WRITERS: dict[str, Writer] = {
    "save": lambda result, path: loraprune.save(byte_model(), path, overwrite=True),
    "save_pretrained": lambda result, path: result.save_pretrained(path, overwrite=True),
    "RunOptions": lambda result, path: RunOptions(output=path, overwrite=True),
    "oneshot": lambda result, path: loraprune.oneshot(
        byte_model(),
        None,
        OneshotConfig(sparsity=0.5, criterion="magnitude"),
        options=RunOptions(output=path, overwrite=True),
    ),
    "evaluate": lambda result, path: evaluate(result.output or "", EvaluationConfig(ppl=("x",), output=path)),
    "report_again": lambda result, path: report_again(result.output or "", output=path),
    "write_report": lambda result, path: write_report(result.report, path),
    "to_json": lambda result, path: result.report.to_json(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_fifo_is_never_replaced(finished: PruneResult, tmp_path: Path, name: str) -> None:
    path = tmp_path / "fifo.html"
    os.mkfifo(path)
    with pytest.raises(OutputExistsError, match="is a FIFO, which is never replaced"):
        WRITERS[name](finished, path)
    assert path.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.html"]


@pytest.mark.parametrize("name", ["save", "save_pretrained"])
def test_nor_is_a_folder_of_somebody_else(finished: PruneResult, tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(OutputExistsError, match=r"not even with --overwrite: thesis\.tex"):
        WRITERS[name](finished, tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_a_result_never_takes_the_place_of_its_base(finished: PruneResult, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=f"{checkpoint} lies in the output folder"):
        finished.save_pretrained(checkpoint, overwrite=True)


def test_nor_does_that_of_a_model_that_was_loaded_from_there(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    model = loraprune.load(folder)
    with pytest.raises(ValueError, match="lies in the output folder"):
        loraprune.oneshot(
            model,
            None,
            OneshotConfig(sparsity=0.5, criterion="magnitude"),
            options=RunOptions(output=folder, overwrite=True),
        )
