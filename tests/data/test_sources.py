from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from loraprune.data.sources import load_source


def write_rows(path: Path, *texts: str) -> None:
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", fail)


@pytest.mark.usefixtures("offline")
class TestOnDisk:
    def test_a_file_is_read_whole_whatever_the_split(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", "one", "two")
        assert load_source(str(tmp_path / "a.jsonl"), split="test")["text"][:] == ["one", "two"]

    def test_nothing_is_written_beside_the_data(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", "one")
        Dataset.from_dict({"text": ["two"]}).to_parquet(tmp_path / "b.parquet")
        load_source(str(tmp_path))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "b.parquet"]

    def test_the_home_folder_is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        write_rows(tmp_path / "a.jsonl", "one")
        assert load_source("~/a.jsonl").num_rows == 1

    def test_a_folder_is_its_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "b.jsonl", "three")
        write_rows(tmp_path / "a.jsonl", "one", "two")
        (tmp_path / "README.md").write_text("no data")
        (tmp_path / ".hidden.jsonl").write_text("broken")
        assert load_source(str(tmp_path))["text"][:] == ["one", "two", "three"]

    @pytest.mark.parametrize(("split", "texts"), [("train", ["t0", "t1"]), ("validation", ["v"]), ("val", ["v"])])
    def test_a_split_picks_the_files_named_after_it(self, tmp_path: Path, split: str, texts: list[str]) -> None:
        write_rows(tmp_path / "train-00000.jsonl", "t0")
        write_rows(tmp_path / "train-00001.jsonl", "t1")
        write_rows(tmp_path / "stories_valid.jsonl", "v")
        write_rows(tmp_path / "other.jsonl", "o")
        assert load_source(str(tmp_path), split=split)["text"][:] == texts

    def test_files_of_other_splits_are_never_read_instead(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "test.jsonl", "t")
        with pytest.raises(FileNotFoundError, match=r"no files of the split 'train', only test\.jsonl"):
            load_source(str(tmp_path))

    def test_a_folder_without_data_files_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_text("x")
        with pytest.raises(FileNotFoundError, match=r"holds no data files \(endings: \.csv, \.json"):
            load_source(str(tmp_path))

    def test_files_with_other_columns_do_not_go_together(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", "one")
        (tmp_path / "b.jsonl").write_text('{"prompt": "x", "completion": "y"}')
        with pytest.raises(ValueError, match=r"a\.jsonl has the columns text, b\.jsonl has prompt, completion"):
            load_source(str(tmp_path))

    def test_files_with_other_kinds_of_values_do_not_go_together(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", "one")
        (tmp_path / "b.jsonl").write_text('{"text": [1]}')
        with pytest.raises(ValueError, match=r"has the type string in a\.jsonl and list in b\.jsonl"):
            load_source(str(tmp_path))

    def test_a_missing_file_is_answered_with_near_names(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "stories.jsonl", "one")
        write_rows(tmp_path / "zebra.jsonl", "one")
        with pytest.raises(FileNotFoundError, match=r"does not exist\. Did you mean .*/stories\.jsonl\?$"):
            load_source(str(tmp_path / "storys.jsonl"))

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*/nowhere either"):
            load_source(str(tmp_path / "nowhere" / "a.jsonl"))

    @pytest.mark.parametrize("data", ["a.jsonl", "./some/folder", "/no/such/thing", "one/two/three"])
    def test_what_cannot_be_a_hub_name_is_not_looked_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_source(data)

    @pytest.mark.parametrize("data", ["", " "])
    def test_no_name_is_refused(self, data: str) -> None:
        with pytest.raises(ValueError, match="No data is named"):
            load_source(data)

    @pytest.mark.parametrize(("given", "message"), [({"name": "main"}, "configuration"), ({"split": "a[:1]"}, "slice")])
    def test_what_only_hub_data_has_is_refused_on_disk(
        self, tmp_path: Path, given: dict[str, str], message: str
    ) -> None:
        write_rows(tmp_path / "a.jsonl", "one")
        with pytest.raises(ValueError, match=message):
            load_source(str(tmp_path / "a.jsonl"), **given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("answering_hub")
class TestHub:
    def test_name_configuration_and_split_are_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def load(*args: Any, **kwargs: Any) -> Dataset:
            asked.append((args, kwargs))
            return Dataset.from_dict({"text": ["one"]})

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert load_source("org/name", split="test", name="main")["text"][:] == ["one"]
        assert asked == [(("org/name", "main"), {"split": "test"})]

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (
                ConnectionError("Couldn't reach 'org/name' on the Hub"),
                FileNotFoundError,
                "'org/name' is not a local file or folder, and the Hub cannot be reached",
            ),
            (
                datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist\non the Hub"),
                FileNotFoundError,
                "'org/name' is not a local file or folder, and the Hub has no such dataset",
            ),
            (ValueError("Unknown split"), ValueError, "The Hub dataset 'org/name' cannot be loaded: Unknown split"),
            (RuntimeError("Dataset scripts are no longer supported"), ValueError, "cannot be loaded: Dataset scripts"),
            (datasets.exceptions.DatasetGenerationError("broken"), ValueError, "cannot be loaded: broken"),
        ],
    )
    def test_failures_are_told_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
    ) -> None:
        def load(*args: Any, **kwargs: Any) -> Dataset:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(kind, match=message) as caught:
            load_source("org/name")
        assert "\n" not in str(caught.value)
        assert type(caught.value) is kind

    def test_a_split_without_rows_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: Dataset.from_dict({"text": []}))
        with pytest.raises(ValueError, match="The split 'train' of 'org/name' holds no rows"):
            load_source("org/name")


def test_real_files_have_their_rows(shared_data: Path) -> None:
    alpaca = load_source(str(shared_data / "instruct" / "alpaca_1k.json"))
    assert alpaca.num_rows == 1000
    assert set(alpaca.column_names) == {"instruction", "input", "output"}
    assert load_source(str(shared_data / "text" / "tinystories_train.jsonl")).num_rows == 3117


ROWS = {"train": ["t0", "t1"], "validation": ["v0"]}


def test_a_saved_data_set_is_taken_whole(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    assert load_source(str(tmp_path / "saved"), split="validation")["text"][:] == ["one", "two"]


def test_a_saved_dictionary_gives_its_splits(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in ROWS.items()})
    splits.save_to_disk(tmp_path / "saved")
    assert load_source(str(tmp_path / "saved"))["text"][:] == ["t0", "t1"]
    assert load_source(str(tmp_path / "saved"), split="dev")["text"][:] == ["v0"]
    with pytest.raises(FileNotFoundError, match="has the splits train, validation, but none called 'test'"):
        load_source(str(tmp_path / "saved"), split="test")


def test_a_copy_of_a_hub_data_set_has_its_splits(tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for split, texts in ROWS.items():
        write_rows(tmp_path / "copy" / "data" / f"{split}-00000-of-00001.jsonl", *texts)
    assert load_source(str(tmp_path / "copy"))["text"][:] == ["t0", "t1"]
    assert load_source(str(tmp_path / "copy"), split="validation[:1]")["text"][:] == ["v0"]


def test_a_copy_of_a_hub_data_set_has_the_configurations_of_its_card(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    write_rows(copy / "x.jsonl", "x0")
    write_rows(copy / "y.jsonl", "y0")
    card = "---\nconfigs:\n- config_name: x\n  data_files: x.jsonl\n- config_name: y\n  data_files: y.jsonl\n---\n"
    (copy / "README.md").write_text(card)
    assert load_source(f"{copy}:y")["text"][:] == ["y0"]
    assert load_source(str(copy), name="x")["text"][:] == ["x0"]
    with pytest.raises(ValueError, match=f"The folder {copy} cannot be loaded: .*x.*y") as caught:
        load_source(str(copy))
    assert "\n" not in str(caught.value)
