from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraprune.data.images import read_image_folder
from loraprune.data.sources import load_source


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((2, 3), i, np.uint8)).save(folder / name)


def test_every_sub_folder_of_images_is_a_class(tmp_path: Path) -> None:
    write(tmp_path / "owl", "b.png", "a.PNG")
    write(tmp_path / "cat", "c.png")
    (tmp_path / "owl" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    write(tmp_path / ".hidden", "d.png")
    rows = read_image_folder(tmp_path)
    assert rows.features["label"].names == ["cat", "owl"]
    assert rows["label"][:] == [0, 1, 1]
    assert [np.asarray(image).max() for image in rows["image"]] == [0, 1, 0]  # a.PNG was written second


def test_a_folder_of_classes_is_a_source_of_data(tmp_path: Path) -> None:
    write(tmp_path / "cat", "c.png")
    assert load_source(str(tmp_path)).column_names == ["image", "label"]


def test_splits_are_folders_of_folders(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat", "a.png", "b.png")
    write(tmp_path / "valid" / "cat", "c.png")
    assert len(load_source(str(tmp_path), split="train")) == 2
    assert len(load_source(str(tmp_path), split="validation")) == 1
    with pytest.raises(FileNotFoundError, match=r"images of the splits train, validation, but none of 'test'"):
        load_source(str(tmp_path), split="test")


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train", "a.png")
    write(tmp_path / "ship", "b.png")
    assert load_source(str(tmp_path)).features["label"].names == ["ship", "train"]


def test_a_folder_without_images_or_data_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no data files .* and no sub-folders of images"):
        load_source(str(tmp_path))
