from __future__ import annotations

from pathlib import Path

import pytest
from tests.metrics.tasks.conftest import write_subject

from loraprune.metrics.tasks.local import read_subjects

ROW = "What is old?,a mill,a bird,a stone,a river,C\n"


def test_a_question_lists_its_choices_by_letter(tmp_path: Path) -> None:
    (tmp_path / "old_things_test.csv").write_text(ROW, encoding="utf-8")
    (subject,) = read_subjects(tmp_path / "old_things_test.csv", num_fewshot=0)
    (row,) = subject.rows
    assert row["query"] == "What is old?\nA. a mill\nB. a bird\nC. a stone\nD. a river\nAnswer:"
    assert row["choices"] == ["A", "B", "C", "D"]
    assert row["gold"] == 2
    about_old_things = "The following are multiple choice questions (with answers) about old things.\n\n"
    assert subject.asked["description"] == about_old_things


def test_a_folder_has_all_its_subjects_with_their_examples(tmp_path: Path) -> None:
    write_subject(tmp_path, "birds")
    write_subject(tmp_path, "stones", tests=3)
    subjects = read_subjects(tmp_path, num_fewshot=5)
    assert [(subject.name, len(subject.rows)) for subject in subjects] == [("birds", 7), ("stones", 3)]
    assert [row["gold"] for row in subjects[0].rows] == [0, 1, 2, 3, 0, 1, 2]
    assert subjects[0].examples is not None
    assert subjects[0].examples[0]["query"].startswith("dev 0, what?\nA. c0a")
    assert set(subjects[0].files) == {"birds_test.csv", "birds_dev.csv"}


def test_the_folders_of_the_published_archive_are_found(tmp_path: Path) -> None:
    write_subject(tmp_path / "test", "birds")
    (tmp_path / "dev").mkdir()
    (tmp_path / "test" / "birds_dev.csv").rename(tmp_path / "dev" / "birds_dev.csv")
    (subject,) = read_subjects(tmp_path, num_fewshot=5)
    assert "birds_dev.csv" in subject.files


def test_without_examples_their_file_is_not_needed(tmp_path: Path) -> None:
    path = write_subject(tmp_path, "birds")
    (tmp_path / "birds_dev.csv").unlink()
    assert read_subjects(path, num_fewshot=0)
    with pytest.raises(ValueError, match=r"birds_dev\.csv is missing.*--num-fewshot 0"):
        read_subjects(path, num_fewshot=5)


def test_more_examples_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 5 items for few-shot examples, and --num-fewshot is 6"):
        read_subjects(write_subject(tmp_path, "birds"), num_fewshot=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("What?,a,b,c,0\n", "line 1 has 5 columns and not 6"),
        (ROW + "What?,a,b,c,d,4\n", "line 2: the answer is '4'"),
        ("What?,a,b,c,d,E\n", "the answer is 'E'"),
        ("What?,a,b,c,d,\n", "the answer is ''"),
        ("question,choice0,choice1,choice2,choice3,answer\n", "has no questions"),
    ],
)
def test_a_wrong_row_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "birds_test.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_subjects(path, num_fewshot=0)


def test_a_folder_or_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no MMLU files"):
        read_subjects(tmp_path, num_fewshot=0)
    other = tmp_path / "birds.csv"
    other.write_text(ROW, encoding="utf-8")
    with pytest.raises(ValueError, match=r"must end in _test\.csv"):
        read_subjects(other, num_fewshot=0)
