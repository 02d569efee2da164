from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraprune import OutputExistsError, PruneResult
from loraprune.record.replaceable import check_output, foreign_entries

RESULT = ("config.json", "model.safetensors", "tokenizer.json", "pruning.json", "report.html", "README.md")


def folder_of(folder: Path, *names: str) -> Path:
    """A folder with files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_new_folder_and_an_empty_one_may_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new", overwrite=False)
    check_output(tmp_path, overwrite=False)


def test_a_file_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "file") / "file"
    with pytest.raises(OutputExistsError, match=f"{path} is a file, but the result is a folder"):
        check_output(path, overwrite=True)


def test_a_folder_that_holds_something_needs_overwrite(tmp_path: Path) -> None:
    folder_of(tmp_path, *RESULT)
    with pytest.raises(OutputExistsError, match=f"{tmp_path} exists and is not empty.*pass --overwrite"):
        check_output(tmp_path, overwrite=False)
    check_output(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("adapter_config.json", "adapter_model.safetensors", "README.md"),
        ("semi_structured.json", "semi_structured-00001-of-00001.safetensors", "config.json"),
        (*RESULT, "runs/Jan01_host/events.out.tfevents.1.host.2.0", "adapter/adapter_config.json", "plan.json"),
        (*RESULT, "modeling_loraprune.py", "model-f16.gguf", "model.onnx", "evaluation.json", "vocab.txt"),
    ],
    ids=lambda names: names[-1],
)
def test_results_are_replaced(tmp_path: Path, names: tuple[str, ...]) -> None:
    check_output(folder_of(tmp_path, *names), overwrite=True)


def test_a_real_result_is_replaced(finished: PruneResult) -> None:
    assert finished.output is not None
    assert foreign_entries(finished.output) == []
    check_output(finished.output, overwrite=True)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("thesis.tex",), "thesis.tex"),
        ((*RESULT, "thesis.tex", "notes.md"), "notes.md, thesis.tex"),
        ((*RESULT, "runs/thesis.tex"), "runs/thesis.tex"),
        ((*RESULT, "adapter/thesis/1.tex"), "adapter/thesis"),
        ((*RESULT, "checkpoint-5/optimizer.pt"), "checkpoint-5"),
        (("tokenizer.json", "tokenizer_config.json"), "tokenizer.json, tokenizer_config.json"),
        (("README.md",), "README.md"),
        (("config.json",), "config.json"),
        (("a", "b", "c", "d", "e"), "a, b, c and 2 more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_refused_and_named(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    folder_of(tmp_path, *names)
    with pytest.raises(OutputExistsError, match=f"holds files that loraprune did not write.*: {told}. Move it away"):
        check_output(tmp_path, overwrite=True)


def test_links_are_none_of_ours(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out", *RESULT)
    (folder / "vocab.txt").symlink_to(folder_of(tmp_path, "thesis.tex") / "thesis.tex")
    with pytest.raises(OutputExistsError, match=r"vocab\.txt"):
        check_output(folder, overwrite=True)


class TestInputs:
    def test_a_result_that_is_an_input_or_holds_one_is_refused(self, tmp_path: Path) -> None:
        out = folder_of(tmp_path / "out", *RESULT)
        for source in (out, out / "config.json", str(out), tmp_path / "nothing" / ".." / "out" / "adapter"):
            folder_of(out, "adapter/adapter_config.json")
            (tmp_path / "nothing").mkdir(exist_ok=True)
            with pytest.raises(ValueError, match=f"lies in the output folder {out}"):
                check_output(out, overwrite=True, inputs=(source,))

    def test_an_object_remembers_where_it_came_from(self, tmp_path: Path) -> None:
        out = folder_of(tmp_path / "out", *RESULT)
        tokenizer = type("Tokenizer", (), {"name_or_path": str(out)})()
        with pytest.raises(ValueError, match="lies in the output folder"):
            check_output(out, overwrite=True, inputs=(tokenizer,))

    def test_a_result_in_an_input_is_refused_and_a_new_folder_there_is_not(self, tmp_path: Path) -> None:
        out = folder_of(tmp_path / "out", *RESULT)
        with pytest.raises(ValueError, match=f"The output folder {out} lies in {tmp_path}, which the run reads"):
            check_output(out, overwrite=True, inputs=(tmp_path,))
        check_output(tmp_path / "new", overwrite=True, inputs=(tmp_path,))

    def test_what_is_no_file_here_is_passed_over(self, tmp_path: Path) -> None:
        out = folder_of(tmp_path / "out", *RESULT)
        check_output(out, overwrite=True, inputs=(None, "user/model", object(), "x" * 5000, "", tmp_path / "none"))


class TestState:
    NAMES = ("checkpoint-12/optimizer.pt", "checkpoint-12/loraprune_state.json", "checkpoint-12/rng_state.pth")

    def test_a_trainers_checkpoints_are_a_runs_state(self, tmp_path: Path) -> None:
        folder_of(tmp_path, *self.NAMES, "adapter/adapter_config.json", "README.md", "checkpoint-9/.x.ab12.tmp")
        assert foreign_entries(tmp_path, state=True) == []

    def test_other_things_are_not(self, tmp_path: Path) -> None:
        folder_of(tmp_path, *self.NAMES, "checkpoint-best/a", "thesis", "checkpoint-12/thesis")
        assert foreign_entries(tmp_path, state=True) == [f"checkpoint-12{os.sep}thesis", "checkpoint-best", "thesis"]
