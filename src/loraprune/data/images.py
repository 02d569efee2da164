"""Images and their labels: from rows of a dataset to the inputs of an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loraprune.data.labels import LABEL_COLUMNS, find_column

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

PIXEL_COLUMN = "pixel_values"
IMAGE_COLUMNS = ("image", "img", "images")
_NEEDED = "the columns 'image' (or 'pixel_values') and 'label'"


@dataclass(frozen=True, kw_only=True)
class ImageColumns:
    """Names of the columns of images and labels.

    Attributes:
        image: column of the images.
        label: column of the labels.
        ready: whether the image column holds pixel values in the form that the model takes.
    """

    image: str
    label: str
    ready: bool


def image_columns(dataset: Dataset) -> ImageColumns:
    """Find the columns of images and labels.

    Raises:
        ValueError: images or labels are missing; the message lists the columns.
    """
    label = find_column(dataset, LABEL_COLUMNS)
    image = find_column(dataset, (PIXEL_COLUMN, *IMAGE_COLUMNS))
    if label is None or image is None:
        found = ", ".join(dataset.column_names) or "(none)"
        raise ValueError(
            f"An image classifier needs {_NEEDED}, but the data has the columns {found}. Rename columns with "
            "--columns, or pass your own collator."
        )
    return ImageColumns(image=image, label=label, ready=image == PIXEL_COLUMN)


def as_picture(value: Any, channels: int) -> Image:
    """Convert a value of an image column to a picture with the model's number of channels.

    Raises:
        ValueError: the value is not an image, or pillow is not installed.
    """
    try:
        from PIL import Image  # late: pillow is optional
    except ModuleNotFoundError as error:
        raise ValueError('Images need pillow, which is not installed: pip install "loraprune[vision]".') from error

    if not isinstance(value, Image.Image):
        if isinstance(value, (str, bytes, dict)) or value is None:
            raise ValueError(
                f"The image column holds a {type(value).__name__}. Convert the column: "
                "dataset.cast_column('image', datasets.Image())."
            )
        pixels = np.asarray(value)
        if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3) or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(
                f"The image column holds arrays of {pixels.dtype} with {pixels.ndim} axes. Give whole numbers from "
                "0 to 255 as (height, width) or (height, width, channels), or preprocessed input in a column "
                "'pixel_values'."
            )
        value = Image.fromarray(np.squeeze(pixels.astype(np.uint8)))
    return value.convert("L" if channels == 1 else "RGB")


@dataclass(frozen=True, kw_only=True)
class ImageCollator:
    """Makes a batch of rows: ``pixel_values`` and ``labels``.

    Attributes:
        columns: columns of image and label.
        numbers: number of each label.
        processor: image processor that resizes and normalizes; None if the pixels are ready.
        channels: number of channels of the model's input.
        dtype: dtype of the pixels, which must be that of the model's weights.
    """

    columns: ImageColumns
    numbers: Mapping[Any, int]
    processor: Any
    channels: int
    dtype: torch.dtype = torch.float32

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of ``rows``."""
        values = [row[self.columns.image] for row in rows]
        if self.columns.ready:
            pixels = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
        else:
            pictures = [as_picture(value, self.channels) for value in values]
            pixels = self.processor(pictures, return_tensors="pt")[PIXEL_COLUMN]
        labels = [self.numbers[_plain(row[self.columns.label])] for row in rows]
        return {PIXEL_COLUMN: pixels.to(self.dtype), "labels": torch.tensor(labels)}


def _plain(value: Any) -> Any:
    """Convert a label that comes as a tensor or a NumPy scalar to a Python value."""
    return value.item() if hasattr(value, "item") else value


# A folder with one sub-folder of images for each class, as a dataset.

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def class_folders(folder: Path) -> list[Path]:
    """Return the sub-folders that directly hold images, sorted by name."""
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
        Rows of ``image`` and ``label``. The classes are named after their folders and numbered in alphabetical order.
    """
    classes = class_folders(folder)
    assert classes
    files = [(file, number) for number, entry in enumerate(classes) for file in _images(entry)]
    from datasets import ClassLabel, Dataset, Features  # late: it takes a second to import
    from datasets import Image as ImageFeature

    return Dataset.from_dict(
        {"image": [str(file) for file, _ in files], "label": [number for _, number in files]},
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=[entry.name for entry in classes])}),
    )
