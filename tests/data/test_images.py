from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from loraprune.data.images import ImageCollator, ImageColumns, as_picture, image_columns

GRAY = (np.arange(12).reshape(3, 4) * 20).astype(np.uint8)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [1], "label": [0]}, ImageColumns(image="image", label="label", ready=False)),
        ({"img": [1], "labels": [0]}, ImageColumns(image="img", label="labels", ready=False)),
        (
            {"pixel_values": [1], "image": [1], "label": [0]},
            ImageColumns(image="pixel_values", label="label", ready=True),
        ),
    ],
)
def test_columns_are_found(columns: dict[str, Any], expected: ImageColumns) -> None:
    assert image_columns(Dataset.from_dict(columns)) == expected


@pytest.mark.parametrize("columns", [{"image": [1]}, {"label": [1]}, {"text": ["a"], "label": [1]}])
def test_missing_columns_are_refused_with_those_there_are(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"the data has the columns {', '.join(columns)}"):
        image_columns(Dataset.from_dict(columns))


@pytest.mark.parametrize(
    "value", [Image.fromarray(GRAY), GRAY, GRAY.tolist(), GRAY[:, :, None], GRAY[:, :, None].repeat(3, 2)]
)
def test_pictures_and_arrays_get_the_channels_of_the_model(value: Any) -> None:
    assert np.array_equal(np.asarray(as_picture(value, 1)), GRAY)
    color = np.asarray(as_picture(value, 3))
    assert color.shape == (3, 4, 3)
    assert np.array_equal(color[..., 1], GRAY)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cat.png", r"holds a str.*cast_column\('image', datasets.Image\(\)\)"),
        (None, "holds a NoneType"),
        (GRAY / 255, r"arrays of float64 with 2 axes.*'pixel_values'"),
        (GRAY[0], "arrays of uint8 with 1 axes"),
        (GRAY.astype(int) + 200, "whole numbers from 0 to 255"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_picture(value, 3)


def test_ready_pixels_are_stacked_and_labels_numbered() -> None:
    columns = ImageColumns(image="pixel_values", label="label", ready=True)
    collator = ImageCollator(columns=columns, numbers={"cat": 2, "dog": 0}, processor=None, channels=1)
    batch = collator([{"pixel_values": np.full((1, 2, 2), i), "label": name} for i, name in enumerate(("dog", "cat"))])
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert batch["labels"].tolist() == [0, 2]


def test_pictures_go_through_the_processor() -> None:
    seen: list[Image.Image] = []

    def processor(pictures: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        seen.extend(pictures)
        return {"pixel_values": torch.zeros(len(pictures), 3, 2, 2)}

    columns = ImageColumns(image="image", label="label", ready=False)
    collator = ImageCollator(columns=columns, numbers={1: 1}, processor=processor, channels=3)
    batch = collator([{"image": GRAY, "label": torch.tensor(1)}])
    assert [picture.mode for picture in seen] == ["RGB"]
    assert batch["labels"].tolist() == [1]
