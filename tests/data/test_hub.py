from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from loraprune.data import hub
from loraprune.data.hub import hub_or_cache, missing_hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Endpoints that were asked, none of which answers."""
    found: list[str] = []

    def ask(endpoint: str) -> bool:
        found.append(endpoint)
        return False

    monkeypatch.setattr(hub, "_answers_in_time", ask)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", {})
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return found


@pytest.fixture
def closed() -> str:
    """The address of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that answers, if only that it will not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *further: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_that_does_not_answer_is_asked_once(asked: list[str]) -> None:
    assert "cannot be reached" in str(missing_hub())
    with hub_or_cache("owner/name"):
        assert "cannot be reached" in str(missing_hub())
    assert asked == [constants.ENDPOINT]


def test_libraries_read_their_caches_meanwhile_and_go_online_again(asked: list[str]) -> None:
    def work() -> None:
        with hub_or_cache("owner/name"):
            assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not constants.HF_HUB_OFFLINE


def test_of_a_path_that_is_here_the_hub_is_not_asked(asked: list[str], tmp_path: Path) -> None:
    with hub_or_cache(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE
    assert not asked


def test_who_says_offline_or_online_is_believed(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert missing_hub() is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(missing_hub())
    assert not asked


def test_after_a_while_it_is_asked_again(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_REMEMBERED", 0.0)
    missing_hub()
    missing_hub()
    assert len(asked) == 2


@pytest.mark.parametrize(("server", "answers"), [("closed", False), ("silent", False), ("refusing", True)])
def test_only_a_server_that_says_something_answers(
    server: str, answers: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 5.0 if answers else 0.5)
    began = time.monotonic()
    assert hub._answers_in_time(request.getfixturevalue(server)) is answers
    assert time.monotonic() - began < 5
