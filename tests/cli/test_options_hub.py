from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from loraprune.cli import options as hub
from loraprune.cli.eval import _asks_the_hub
from loraprune.cli.options import stay_offline_without_hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that a name server was asked for; none of them has an address."""
    hosts: list[str] = []

    def fail(host: str, *further: Any) -> None:
        hosts.append(host)
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is restored
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return hosts


def test_without_an_address_of_the_hub_libraries_are_told_to_stay_offline(
    asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    stay_offline_without_hub()
    assert (asked, os.environ["HF_HUB_OFFLINE"]) == (["huggingface.co"], "1")
    assert "huggingface.co has no address here" in caplog.text
    stay_offline_without_hub()
    assert len(asked) == 1


def test_a_mirror_is_asked_for_in_the_hubs_place(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org:8443/mirror")
    stay_offline_without_hub()
    assert asked == ["hub.example.org"]


def test_behind_a_proxy_nothing_is_concluded(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.example.org"})
    stay_offline_without_hub()
    assert not asked
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.usefixtures("asked")
def test_nor_is_where_the_name_server_is_slow_or_knows_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    for answer in (lambda *further: time.sleep(0.5), lambda *further: []):
        monkeypatch.setattr(socket, "getaddrinfo", answer)
        stay_offline_without_hub()
        assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    ("values", "asks"),
    [
        ({}, True),
        ({"ppl": ["wikitext2"]}, True),
        ({"ppl": ["wikitext2=here.txt", "here.txt"]}, False),
        ({"tasks": ["piqa"]}, True),
        ({"tasks": ["gone.jsonl", "./mmlu"]}, False),
        ({"prompts": []}, False),
        ({"data": "owner/images"}, True),
        ({"data": "here.txt"}, False),
        ({"prompts": [], "tokenizer": "owner/model"}, True),
        ({"models": ["here.txt", "owner/model"], "prompts": []}, True),
    ],
    ids=str,
)
def test_eval_asks_the_hub_for_what_is_not_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], asks: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("a text")
    assert _asks_the_hub({"models": ["here.txt"]} | values) is asks
