"""Checks that classifiers of all kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from loraprune.data.labels import ModelLabels

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_classifier(config: PretrainedConfig) -> None:
    """Make sure that a classifier tells one of several labels.

    Raises:
        ValueError: it has one output, or is set up for regression or for several labels at once.
    """
    kind = getattr(config, "problem_type", None)
    if kind not in (None, "single_label_classification"):
        raise ValueError(
            f"The model's config says problem_type={kind!r}. Classifiers with one label an example are supported: "
            "problem_type 'single_label_classification', or none."
        )
    count = ModelLabels.of(config).count
    if count < 2:
        raise ValueError(f"The model has {count} label, which is regression. Load it with num_labels=2 or more.")


def check_labels(batch: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Make sure that a user's own collator gives labels that the model has.

    Raises:
        ValueError: it gives none, or others.
    """
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"The collator gives {', '.join(map(str, batch)) or 'nothing'}; a classifier needs 'labels', one whole "
            "number a row."
        )
    count = ModelLabels.of(config).count
    wrong = labels[(labels < 0) | (labels >= count)].tolist()
    if wrong:
        raise ValueError(
            f"The collator gives the label {wrong[0]}, and the model has {count} labels (0 to {count - 1})."
        )
