from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraprune.record.atomic import check_file, write_bytes, write_text
from loraprune.record.places import OutputExistsError, WriteError, check_place, telling_of_failed_writes


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


SPECIAL: list[tuple[str, Callable[[Path], None]]] = [("FIFO", fifo), ("device", device), ("socket", bound_socket)]


@pytest.mark.parametrize(("kind", "make"), SPECIAL)
def test_what_is_neither_file_nor_folder_is_refused_and_stays(
    tmp_path: Path, kind: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("special")
    make(path)
    Path("link").symlink_to("special")
    before = path.stat()
    for name in (path, Path("link")):
        for write in (check_place, lambda place: check_file(place, example=""), lambda place: write_bytes(place, b"")):
            with pytest.raises(OutputExistsError, match=f"The output {name} is a {kind}, which is never replaced"):
                write(name)
    assert os.path.samestat(path.stat(), before)
    assert {path.name for path in tmp_path.iterdir()} == {"special", "link"}


@contextmanager
def somebody_else() -> Iterator[None]:
    """One who is not root: root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_one_may_not_write_to_is_found_out(tmp_path: Path) -> None:
    above = Path(tempfile.gettempdir())
    for folder in (tmp_path, *(parent for parent in tmp_path.parents if above in parent.parents)):
        folder.chmod(0o755)  # with several workers, one more stands above
    (tmp_path / "mine").mkdir(mode=0o555)
    with somebody_else(), pytest.raises(ValueError, match=r"mine is not a folder that you can write to \(Permission"):
        check_place(tmp_path / "mine" / "a" / "b.json")


def test_a_file_among_the_folders_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is not a folder that you can write to \(Not a directory\)"):
        check_place(tmp_path / "file" / "b.json")


def test_a_link_to_itself_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop cannot be written"):
        check_place(tmp_path / "loop")


def test_trying_a_place_out_leaves_nothing(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


class TestFiles:
    def test_a_folder_is_refused_with_a_name_for_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(OutputExistsError, match=rf"is a folder. Name a file, such as {tmp_path}/bench.json"):
            check_file(tmp_path, example="bench.json")

    def test_a_file_that_is_read_is_refused(self, tmp_path: Path) -> None:
        write_text(tmp_path / "data.jsonl", "{}")
        check_file(tmp_path / "data.jsonl", example="", inputs=(tmp_path, None, "other"))
        with pytest.raises(OutputExistsError, match="would replace a file that is read"):
            check_file(tmp_path / "data.jsonl", example="", inputs=(str(tmp_path / "data.jsonl"),))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pruning.json", "tokenizer.json"])
    def test_a_file_of_a_checkpoint_is_refused(self, tmp_path: Path, name: str) -> None:
        check_file(tmp_path / name, example="")
        write_text(tmp_path / name, "{}")
        with pytest.raises(OutputExistsError, match="would replace a file that is read"):
            check_file(tmp_path / name, example="")

    def test_a_link_stays_one_and_its_file_is_replaced(self, tmp_path: Path) -> None:
        write_text(tmp_path / "file", "old")
        (tmp_path / "link").symlink_to("file")
        write_text(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_text() == "new"

    def test_a_file_is_made_for_all_whom_the_umask_allows(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "file", "")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640

    def test_the_file_on_the_way_is_new_and_its_name_cannot_be_foretold(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[str, int]] = []
        opened = os.open

        def spy(path: Path, flags: int, *mode: int) -> int:
            if str(path).endswith(".tmp"):
                seen.append((str(path), flags))
            return opened(path, flags, *mode)

        monkeypatch.setattr(os, "open", spy)
        write_text(tmp_path / "file", "")
        write_text(tmp_path / "file", "")
        assert len({name for name, _ in seen}) == 2
        assert all(flags & os.O_EXCL and flags & os.O_CREAT for _, flags in seen)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestFailedWrites:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
    def test_what_the_system_refuses_is_told_in_one_line(self, number: int) -> None:
        with (
            pytest.raises(WriteError, match=f"^out cannot be written: {os.strerror(number)}. Free some space, or name"),
            telling_of_failed_writes("out"),
        ):
            raise OSError(number, os.strerror(number))

    @pytest.mark.parametrize("write", [save_file, torch.save])
    def test_so_is_what_safetensors_and_torch_say(self, tmp_path: Path, write: Callable[[object, Path], None]) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(WriteError, match=r"^out cannot be written: [^\n]*$"), telling_of_failed_writes("out"):
                write({"a": torch.ones(10_000)}, tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def test_other_errors_pass(self) -> None:
        for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "no"), ValueError("no")):
            with pytest.raises(type(error)) as found, telling_of_failed_writes("out"):
                raise error
            assert found.value is error
