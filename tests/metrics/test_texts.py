from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from loraprune.metrics.texts import TEXT_SETS, find_texts, read_text

WIKITEXT = " \n = A title = \n \n The first line of it . \n Another one . \n"
"""As lines of the raw files are: empty ones hold a space, and all end with one."""


def the(name: str) -> Any:
    (source,) = find_texts([name])
    return read_text(source)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows that the hub gives out, and what it was last asked for."""
    state: dict[str, Any] = {"rows": {}}

    def load_dataset(**arguments: Any) -> Dataset:
        state["asked"] = arguments
        return Dataset.from_dict(state["rows"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


class TestConventions:
    def test_rows_of_wikitext2_are_joined_by_two_newlines_and_keep_their_own(self, hub: dict[str, Any]) -> None:
        hub["rows"] = {"text": ["", " = A title = \n", "", " The first line of it . \n"]}
        assert the("wikitext2").text == "\n\n = A title = \n\n\n\n\n The first line of it . \n"
        assert hub["asked"] == {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"}

    def test_sentences_of_ptb_are_joined_by_two_newlines_with_unk_as_it_stands(self, hub: dict[str, Any]) -> None:
        hub["rows"] = {"sentence": ["we 're <unk> N", "he said"]}
        assert the("ptb").text == "we 're <unk> N\n\nhe said"
        assert hub["asked"]["split"] == "validation"
        assert hub["asked"]["revision"] == "refs/convert/parquet"

    def test_of_c4_the_first_1100_documents_are_joined_by_a_space_and_256_segments_are_measured(
        self, hub: dict[str, Any]
    ) -> None:
        hub["rows"] = {"text": [f"document {number}" for number in range(1200)]}
        text = the("c4")
        assert text.text.startswith("document 0 document 1 document 2 ")
        assert text.text.endswith(" document 1099")
        assert text.max_segments == 256
        assert hub["asked"]["data_files"] == {"validation": "en/c4-validation.00000-of-00008.json.gz"}

    def test_a_local_copy_of_wikitext2_is_the_text_of_the_hub(self, hub: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "wiki.test.raw"
        path.write_text(WIKITEXT)
        hub["rows"] = {"text": ["", " = A title = \n", "", " The first line of it . \n", " Another one . \n"]}
        local = the(f"wikitext2={path}")
        assert (local.name, local.source) == ("wikitext2", "wiki.test.raw")
        assert local.text == the("wikitext2").text

    def test_a_local_copy_of_ptb_loses_the_space_around_its_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "ptb.valid.txt"
        path.write_text(" he said \n we 're <unk> \n")
        assert the(f"ptb={path}").text == "he said\n\nwe 're <unk>"

    def test_a_local_copy_of_c4_is_json_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "c4.jsonl"
        path.write_text("".join(json.dumps({"text": f"one\n{number}"}) + "\n" for number in range(1101)))
        text = the(f"c4={path}")
        assert text.text.startswith("one\n0 one\n1 ")
        assert text.text.endswith("one\n1099")
        assert text.max_segments == 256


class TestFiles:
    def test_a_text_file_is_taken_as_it_stands(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.raw"
        path.write_text(" first\n\n\nsecond \n")
        text = the(str(path))
        assert (text.name, text.text, text.max_segments) == ("notes.raw", " first\n\n\nsecond \n", None)
        assert text.facts == {
            "source": "notes.raw",
            "bytes": 17,
            "sha256": hashlib.sha256(b" first\n\n\nsecond \n").hexdigest(),
        }

    def test_a_set_comes_before_a_file_of_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("ptb").write_text("my own words")
        by_name, by_place = find_texts(["ptb"])[0], find_texts(["./ptb"])[0]
        assert (by_name.file, by_name.put_together) == (None, TEXT_SETS["ptb"])
        assert (by_place.file, by_place.put_together) == (Path("ptb"), None)

    def test_documents_of_json_lines_are_joined_by_two_newlines(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.jsonl"
        path.write_text('{"text": "a"}\n\n{"text": "b\\u2028c"}\n')
        assert the(f"mine={path}").text == "a\n\nb\u2028c"

    def test_halves_of_characters_become_question_marks(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.jsonl"
        path.write_text('{"text": "a\\ud800b"}\n')
        assert the(str(path)).text == "a?b"


class TestWrong:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("wikitext", "There is no text 'wikitext': .* Did you mean 'wikitext2'\\?"),
            (
                "nowhere.txt",
                "There is no text 'nowhere.txt': it is neither a file nor one of the datasets wikitext2, ptb, c4",
            ),
            ("ptb=nowhere.txt", "The text 'ptb' needs the file nowhere.txt, which does not exist"),
            (".", "\\. is a folder, not a text\\. If it is a model, name it before the options"),
        ],
    )
    def test_what_does_not_exist_is_refused(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_texts([name])

    def test_two_texts_of_one_name_are_refused(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "notes.txt").write_text("x")
        names = [str(tmp_path / "a" / "notes.txt"), str(tmp_path / "b" / "notes.txt")]
        with pytest.raises(ValueError, match=r"Two texts have the name 'notes.txt'.*NAME=FILE"):
            find_texts(names)
        assert [source.name for source in find_texts([names[0], f"other={names[1]}"])] == ["notes.txt", "other"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b" \n", "is empty"),
            ("a.txt", b"\xff\xfe", "not UTF-8 text"),
            ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2 is not JSON"),
            ("a.jsonl", b'{"content": "a"}\n', "line 1 has no text under 'text'"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            the(str(tmp_path / name))

    @pytest.mark.usefixtures("answering_hub")
    def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(**arguments: Any) -> None:
            raise ConnectionError("Couldn't reach\nthe hub.")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(ValueError, match=r"cannot be loaded from the Hub: Couldn't reach the hub\. .*ptb=FILE"):
            the("ptb")


def test_demo_is_the_text_that_the_demo_holds_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = the("demo")
    assert (text.name, text.max_segments) == ("demo", 64)
    assert "class ArgumentParser" in text.text
    (tmp_path / "demo").write_text("A file of this name.")
    assert the("demo").text == "A file of this name."
