"""What is checked before a push, and what a push sends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from tests.hub_server import StandInHub

from loraprune.checkpoint.publish import HubTarget
from loraprune.record.places import WriteError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a result looks like from afar."""
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", "adapter/adapter_model.safetensors"):
        (tmp_path / "out" / name).write_text(name)
    return tmp_path / "out"


class TestCheck:
    def test_a_name_alone_is_one_of_the_account(self, own_hub: StandInHub) -> None:
        assert HubTarget(name="small").check() == "me/small"
        assert HubTarget(name="lab/small").check() == "lab/small"
        assert own_hub.public == set()  # nothing is made

    @pytest.mark.parametrize("name", ["", "a/b/c", "https://huggingface.co/me/x", "me/x y", "x.git"])
    def test_no_name_of_the_hub(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"not a valid name for a model on the Hub\. Give"):
            HubTarget(name=name)

    @pytest.mark.parametrize("owner", ["library", "stranger"])
    def test_an_owner_under_whom_the_account_may_not_write(self, own_hub: StandInHub, owner: str) -> None:
        with pytest.raises(ValueError, match=f"under {owner}.*may push under me, lab"):
            HubTarget(name=f"{owner}/small").check()

    def test_the_owners_of_a_fine_grained_token_are_not_known(self, own_hub: StandInHub) -> None:
        own_hub.role = "fineGrained"
        assert HubTarget(name="stranger/small").check() == "stranger/small"

    def test_a_token_that_only_reads(self, own_hub: StandInHub) -> None:
        own_hub.role = "read"
        with pytest.raises(ValueError, match="has read access only"):
            HubTarget(name="small").check()

    def test_no_login_and_a_wrong_one(self, own_hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "wrong")
        with pytest.raises(ValueError, match=r"rejects the login.*hf auth login"):
            HubTarget(name="small").check()
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        with pytest.raises(ValueError, match=r"needs a login.*HF_TOKEN"):
            HubTarget(name="small").check()

    def test_a_hub_that_is_switched_off(self, own_hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*loraprune push OUT NAME"):
            HubTarget(name="small").check()

    def test_what_is_to_be_private_goes_to_no_public_repository(self, own_hub: StandInHub, folder: Path) -> None:
        own_hub.public.add("me/small")
        assert HubTarget(name="small").check() == "me/small"
        private = HubTarget(name="small", private=True)
        with pytest.raises(ValueError, match="is a public repository, but --private"):
            private.check()
        with pytest.raises(WriteError, match="is a public repository"):
            private.push(folder)
        assert own_hub.branches == []


class TestPush:
    def test_weights_of_an_earlier_push_go_and_other_files_stay(self, own_hub: StandInHub, folder: Path) -> None:
        HubTarget(name="small").push(folder)
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        HubTarget(name="small", revision="main").push(folder)
        own_hub.files["me/small"]["notes.txt"] = b""
        assert HubTarget(name="small").push(folder)
        assert own_hub.files["me/small"].keys() == {
            *("config.json", "README.md", "adapter/adapter_model.safetensors"),
            *("model-00001-of-00002.safetensors", "notes.txt"),
        }

    def test_a_file_gets_a_card_where_there_is_none(self, own_hub: StandInHub, folder: Path) -> None:
        (folder / "model.gguf").write_text("GGUF")
        (folder / "README.md").write_text("---\nlicense: mit\nbase_model: me/large\ntags: [loraprune]\n---\n# Small\n")
        HubTarget(name="small").push(folder / "model.gguf")
        files = own_hub.files["me/small"]
        assert files.keys() == {"model.gguf", "README.md"}
        data = ModelCard(files["README.md"].decode()).data
        assert (data.license, data.base_model, data.library_name) == ("mit", "me/large", "gguf")
        assert data.tags == ["loraprune", "gguf"]
        files["README.md"] = b"mine"
        HubTarget(name="small").push(folder / "model.gguf")
        assert files["README.md"] == b"mine"

    def test_a_failure_is_one_line(self, own_hub: StandInHub, folder: Path) -> None:
        own_hub.refuses_commits = True
        with pytest.raises(WriteError, match="The push to small failed") as caught:
            HubTarget(name="small").push(folder)
        assert "\n" not in str(caught.value)

    def test_the_command_says_it_all(self, folder: Path) -> None:
        target = HubTarget(name="small", private=True, revision="half", token="hf_hidden")
        found = target.command(Path("a folder"))
        assert found == "loraprune push 'a folder' small --private --hub-revision half"
        assert not re.search("hidden", found + repr(target))
