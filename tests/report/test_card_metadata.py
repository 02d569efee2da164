"""What the hub reads at the top of a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from loraprune.record.run_record import RunRecord
from loraprune.report.card_metadata import card_metadata, metadata_of

BASE = "---\nlicense: {license}\nlicense_name: own\nlicense_link: LICENSE\n{more}---\n# A base\n"


def data_of(base: str | Path, task: str = "causal-lm", **given: Any) -> ModelCardData:
    """What the hub's own library reads."""
    text = card_metadata(RunRecord(base_model=str(base), task=task), ["pruned"], **given) + "# A model\n"
    found = ModelCard(text).data
    assert isinstance(found, ModelCardData)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_card(folder: Path, more: str = "") -> None:
    (folder / "README.md").write_text(BASE.format(license="other", more=more))


def test_a_model_of_the_hub_is_the_base() -> None:
    data = data_of("me/large", data="me/stories")
    assert (data.base_model, data.base_model_relation) == ("me/large", "finetune")  # type: ignore[attr-defined]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["loraprune", "pruned"]
    assert data.datasets == ["me/stories"]
    assert data.license is None


def test_a_folder_is_no_base_for_the_hub(folder: Path) -> None:
    data = data_of(folder)
    assert data.base_model is None
    assert data.datasets is None
    assert "base_model_relation" not in data.to_dict()


def test_license_and_base_are_those_of_the_bases_card(folder: Path) -> None:
    write_card(folder, "base_model: me/large\n")
    data = data_of(folder)
    assert (data.license, data.license_name, data.base_model) == ("other", "own", "me/large")
    assert data.license_link == "https://huggingface.co/me/large/blob/main/LICENSE"


def test_a_link_into_a_folder_leads_nowhere(folder: Path) -> None:
    write_card(folder)
    assert data_of(folder).license_link is None


@pytest.mark.parametrize(
    ("task", "expected"),
    [("image-classification", "image-classification"), ("text-to-text", "translation")],
)
def test_the_pipeline_follows_from_the_task_or_is_the_bases(folder: Path, task: str, expected: str) -> None:
    write_card(folder, "pipeline_tag: translation\n")
    assert data_of(folder, task).pipeline_tag == expected


@pytest.mark.parametrize(
    "text", ["", "# No metadata\n", "---\nlicense: mit\n", "---\n- a\n---\n", "---\na: [\n---\n", "\0"]
)
def test_a_card_that_says_nothing_is_none(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    assert metadata_of(str(folder)) == {}
