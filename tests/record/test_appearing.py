from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loraprune.record import appearing
from loraprune.record.appearing import appearing_folder, exchange
from loraprune.record.claims import claimed
from loraprune.record.places import WriteError

RESULT = "pruning.json"


class BoomError(Exception):
    pass


def old_result(folder: Path) -> Path:
    """A folder as loraprune leaves it."""
    folder.mkdir()
    (folder / RESULT).write_text("old")
    return folder


def write(output: Path, *, overwrite: bool = False, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Make a folder, while something happens."""
    with appearing_folder(output, overwrite=overwrite) as folder:
        (folder / "new").write_text("new")
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that can exchange two folders in one step, and others."""
    if not request.param:
        monkeypatch.setattr(appearing, "exchange", lambda first, second: False)


def test_a_folder_appears_with_all_its_files_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "a" / "out"
    with appearing_folder(output) as folder:
        (folder / "file").write_text("new")
        assert not output.exists()
    assert (output / "file").read_text() == "new"
    assert names(output.parent) == ["out"]


@pytest.mark.usefixtures("_ways")
def test_all_files_are_for_all_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with appearing_folder(tmp_path / "out") as folder:
            (folder / "inner").mkdir()
            for file in (folder / "weights", folder / "inner" / "weights"):
                file.touch(mode=0o600)  # as safetensors writes
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("weights")} == {0o640}


def test_an_old_result_is_replaced_whole(tmp_path: Path) -> None:
    output = old_result(tmp_path / "out")
    with appearing_folder(output, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (output / RESULT).read_text() == "old"
    assert names(output) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("_ways")
def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    old_result(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to("elsewhere")
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "elsewhere") == ["new"]


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_nothing_behind_and_the_old_folder_untouched(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    output = tmp_path / "out"
    if exists:
        old_result(output)

    def fail() -> None:
        raise error

    with pytest.raises(error):
        write(output, overwrite=True, meanwhile=fail)
    assert names(tmp_path) == (["out"] if exists else [])
    assert not exists or (output / RESULT).read_text() == "old"


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = old_result(tmp_path / "out")
    replace = Path.replace

    def failing(source: Path, target: Path) -> Path:
        if source.suffix == ".partial":
            raise OSError("no")
        return replace(source, target)

    monkeypatch.setattr(appearing, "exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no"):
        write(output, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(output) == [RESULT]


class TestAPlaceThatIsTakenMeanwhile:
    def test_by_a_folder_keeps_both(self, tmp_path: Path) -> None:
        output = tmp_path / "out"

        def thesis() -> None:
            output.mkdir()
            (output / "thesis.tex").write_text("three years")

        with pytest.raises(WriteError, match=rf"{output} was created or changed during the run.*is in {output}\.new\."):
            write(output, meanwhile=thesis)
        assert names(tmp_path) == ["out", "out.new"]
        assert names(output) == ["thesis.tex"]
        assert names(tmp_path / "out.new") == ["new"]

    def test_by_a_result_keeps_both_without_overwrite(self, tmp_path: Path) -> None:
        output = tmp_path / "out"
        with pytest.raises(WriteError, match="was created or changed"):
            write(output, meanwhile=lambda: old_result(output) and None)
        assert (names(output), names(tmp_path / "out.new")) == ([RESULT], ["new"])

    def test_by_a_file_put_into_an_old_result_keeps_both_even_with_overwrite(self, tmp_path: Path) -> None:
        output = old_result(tmp_path / "out")
        (tmp_path / "out.new").mkdir()
        with pytest.raises(WriteError, match=r"out\.new-2\."):
            write(output, overwrite=True, meanwhile=lambda: (output / "thesis.tex").touch())
        assert names(output) == [RESULT, "thesis.tex"]
        assert names(tmp_path / "out.new-2") == ["new"]

    def test_by_a_file_keeps_both(self, tmp_path: Path) -> None:
        output = tmp_path / "out"
        with pytest.raises(WriteError, match="was created or changed"):
            write(output, meanwhile=lambda: output.touch())
        assert output.is_file()
        assert names(tmp_path / "out.new") == ["new"]

    def test_by_an_empty_folder_does_not_matter(self, tmp_path: Path) -> None:
        write(tmp_path / "out", meanwhile=(tmp_path / "out").mkdir)
        assert names(tmp_path / "out") == ["new"]


def test_a_full_disk_is_one_clear_error_and_leaves_the_old_result(tmp_path: Path) -> None:
    output = old_result(tmp_path / "out")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError, match=f"{output} cannot be written: No space left on device. Free some space"):
        write(output, overwrite=True, meanwhile=full)
    assert names(tmp_path) == ["out"]
    assert (output / RESULT).read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="RENAME_EXCHANGE is a call of Linux")
def test_two_folders_swap_their_names_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["of b"], ["of a"])
    assert not exchange(tmp_path / "a", tmp_path / "none")


KILLED = """
import os, signal
from pathlib import Path
from loraprune.record import appearing
from loraprune.record.appearing import appearing_folder

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

{where}
with appearing_folder(Path("out"), overwrite=True) as folder:
    (folder / "new").write_text("new")
    {within}
"""


def kill(folder: Path, where: str = "", within: str = "pass") -> None:
    """A run into ``out`` that is killed."""
    code = KILLED.format(where=where, within=within)
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ}, check=False)
    assert found.returncode == -9


class TestAfterAKill:
    def test_while_files_are_written_the_old_result_stands_and_the_next_run_clears_up(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        output = old_result(tmp_path / "out")
        kill(tmp_path, within="die()")
        assert names(output) == [RESULT]
        assert any(name.endswith(".partial") for name in names(tmp_path))
        write(output, overwrite=True)
        assert names(tmp_path) == ["out"]
        assert names(output) == ["new"]
        assert "Removed the leftovers of a killed run" in caplog.text

    def test_after_the_exchange_the_new_result_stands(self, tmp_path: Path) -> None:
        output = old_result(tmp_path / "out")
        kill(tmp_path, where="appearing.shutil.rmtree = die")
        assert names(output) == ["new"]
        write(output.with_name("other"))  # what another output's run left is left alone
        assert any(name.startswith(".out.") for name in names(tmp_path))
        with claimed(output):
            pass
        assert names(tmp_path) == ["other", "out"]
        assert names(output) == ["new"]

    def test_between_two_renames_the_old_result_comes_back(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        output = old_result(tmp_path / "out")
        kill(
            tmp_path,
            where="appearing.exchange = lambda *names: False\nreplace = Path.replace\n"
            "Path.replace = lambda path, to: die() if path.suffix == '.partial' else replace(path, to)",
        )
        assert not output.exists()
        with pytest.raises(WriteError, match="was created or changed"):
            write(output)  # what was there is back, and was not to be replaced
        assert (output / RESULT).read_text() == "old"
        assert names(tmp_path) == ["out", "out.new"]
        assert f"Restored {output}" in caplog.text
