"""A figure belongs to the model whose files it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.run_folders import with_weights

from loraprune.checkpoint.fingerprint import folder_fingerprint
from loraprune.measure.owner import Known, Owners, Ownership


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return with_weights(tmp_path / "run", "weights")


def test_a_place_is_seen_from_the_file_too(tmp_path: Path, run: Path) -> None:
    owners = Owners({"run": Known(folder=run)})
    assert owners.of("../run", folder_fingerprint(run), tmp_path / "results" / "r.json") == Ownership("run")


def test_files_that_moved_are_known_and_files_that_changed_are_stale(tmp_path: Path, run: Path) -> None:
    owners = Owners({"run": Known(folder=run)})
    assert owners.of("gone", folder_fingerprint(run), tmp_path / "r.json") == Ownership("run")
    assert owners.of(str(run), "sha256:another", tmp_path / "r.json") == Ownership("run", stale=True)
    assert owners.of("gone", "sha256:another", tmp_path / "r.json") == Ownership()


def test_of_two_copies_the_one_at_the_place_counts(tmp_path: Path, run: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = with_weights(tmp_path / "copy", "weights")
    owners = Owners({"run": Known(folder=run), "copy": Known(folder=copy)})
    assert owners.of(str(copy), folder_fingerprint(copy), tmp_path / "r.json") == Ownership("copy")


def test_without_a_hash_on_both_sides_names_have_to_do(tmp_path: Path, run: Path) -> None:
    owners = Owners({"hub": Known(folder=Path("maker/model"), name="maker/model"), "run": Known(folder=run)})
    assert owners.of("maker/model", "hub:maker/model@1", tmp_path / "r.json") == Ownership("hub")
    assert owners.of(str(run), None, tmp_path / "r.json") == Ownership("run")


def test_a_hub_name_is_not_taken_for_a_run_of_that_name_beside_the_file(tmp_path: Path, run: Path) -> None:
    owners = Owners({"run": Known(folder=run), "hub": Known(folder=Path("run"), name="run")})
    assert owners.of("run", "hub:run@1", tmp_path / "r.json") == Ownership("hub")


def test_the_last_part_of_a_name_will_do_only_if_that_is_asked_for_and_one_model_alone_has_it(tmp_path: Path) -> None:
    models = {"hub": Known(folder=Path("maker/model"), name="maker/model")}
    file = tmp_path / "r.json"
    assert Owners(models).of("model", None, file) == Ownership()
    assert Owners(models, by_own_name=True).of("model", None, file) == Ownership("hub")
    models["run"] = Known(folder=tmp_path / "runs" / "model")
    assert Owners(models, by_own_name=True).of("model", None, file) == Ownership()


def test_a_folder_is_hashed_once_and_only_for_figures_that_may_be_its_own(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other = with_weights(tmp_path / "other", "other weights")
    fingerprint = folder_fingerprint(run)
    hashed: list[Path] = []

    def noted(folder: Path) -> str:
        hashed.append(folder)
        return folder_fingerprint(folder)

    monkeypatch.setattr("loraprune.measure.owner.folder_fingerprint", noted)
    owners = Owners({"other": Known(folder=other), "run": Known(folder=run)})
    for _ in range(2):
        assert owners.of(str(run), fingerprint, tmp_path / "r.json").key == "run"
    assert hashed == [run]
