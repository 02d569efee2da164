"""A folder with one sub-folder of images for each class, as a data set."""

from __future__ import annotations

from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def class_folders(folder: Path) -> list[Path]:
    """Sub-folders that hold images themselves, sorted by name."""
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith((".", "_")) and _images(entry)
    ]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and file.is_file())


def read_image_folder(folder: Path) -> Dataset:
    """List the images of a folder of classes; pixels are read when a row is used.

    Returns:
        Rows of ``image`` and ``label``, the classes named after their folders and numbered in the names' order.
    """
    classes = class_folders(folder)
    assert classes
    files = [(file, number) for number, entry in enumerate(classes) for file in _images(entry)]
    return Dataset.from_dict(
        {"image": [str(file) for file, _ in files], "label": [number for _, number in files]},
        features=Features({"image": Image(), "label": ClassLabel(names=[entry.name for entry in classes])}),
    )
