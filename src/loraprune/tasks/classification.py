"""Classifiers of images and of texts: tuned by transformers' Trainer, measured by accuracy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import give_pad_token_, load_image_processor
from loraprune.checkpoint.source import ModelSource
from loraprune.data.images import PIXEL_COLUMN, ImageCollator, image_columns
from loraprune.data.labels import ModelLabels, label_numbers
from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.accuracy import accuracy
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows, on_device
from loraprune.tasks.task import LATENCY_TOKENS, Setup, Task, Workload, classifier_measures, random_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from loraprune.data.formats import PreparedRows

logger = logging.getLogger("loraprune")


class _Classification(Task):
    """Predict one of several labels."""

    eval_rows = 1000
    trains_head = True

    def check_model(self, config: PretrainedConfig) -> None:
        """Check that a classifier predicts one of several labels.

        Raises:
            ValueError: it has one output, or is set up for regression or for several labels per example.
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

    def quality(self, model: PreTrainedModel, held_out: HeldOut | HeldOutRows, processor: Any) -> dict[str, Any]:
        """Accuracy and loss."""
        assert isinstance(held_out, HeldOutRows)
        return asdict(accuracy(model, held_out))


class ImageClassification(_Classification):
    """Predict the class of an image."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    row_name = "image"
    measures = classifier_measures("image")
    has_tokenizer = False

    def defaults(self, own_collator: Collator | None) -> dict[str, Any]:
        """The collator reads columns that are not inputs of the model."""
        return {"label_names": ["labels"], "remove_unused_columns": False}

    def find_image_processor(self, given: Any, source: ModelSource) -> Any:
        """The given image processor, or the checkpoint's, or None."""
        if given is not None and not isinstance(given, (str, Path)):
            return given
        name = source.checkpoint if given is None else str(given)
        if name is None:
            return None
        return load_image_processor(
            name,
            required=given is not None,
            trust_remote_code=source.trust_remote_code,
            revision=source.checkpoint_revision if given is None else None,
        )

    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Check the columns, the labels and the first images. Pixels are read when a batch is made."""
        if setup.collator is None:
            columns = image_columns(rows)
            if columns.ready:
                rows = rows.with_format("torch", columns=[PIXEL_COLUMN], output_all_columns=True)
            elif setup.processor is None:
                raise ValueError(
                    "The model has no image processor to resize and normalize images with. Pass image_processor= (an "
                    f"object or a checkpoint's name), or give finished input in a column {PIXEL_COLUMN!r}."
                )
        from loraprune.data.formats import PreparedRows  # imported late: datasets takes a second to import

        prepared = PreparedRows(
            dataset=rows,
            facts={"format": "images and labels", "images": len(rows), "labels": setup.source.config.num_labels},
            total=len(rows),
        )
        self._check_batch(self.collator(prepared, setup)([rows[0]]), setup)
        return prepared

    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator:
        """The user's own collator, or one that applies the image processor."""
        if setup.collator is not None:
            return setup.collator
        columns = image_columns(prepared.dataset)
        config = setup.source.config
        return ImageCollator(
            columns=columns,
            numbers=label_numbers(prepared.dataset, columns.label, ModelLabels.of(config)),
            processor=setup.processor,
            channels=int(getattr(config, "num_channels", 3)),
            dtype=setup.dtype,
        )

    def _check_batch(self, batch: Mapping[str, Any], setup: Setup) -> None:
        """Check that a model can be called with a batch.

        Raises:
            ValueError: the collator returns no pixels or no labels, or images of a different size than the model's.
        """
        pixels = batch.get(PIXEL_COLUMN)
        if not isinstance(pixels, torch.Tensor):
            raise ValueError(
                f"The collator gives {', '.join(map(str, batch)) or 'nothing'}; an image classifier is called with "
                f"{PIXEL_COLUMN!r} and 'labels', as tensors."
            )
        check_labels(batch, setup.source.config)
        model = setup.source.shapes
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        try:
            with eval_mode(model), torch.no_grad():
                model(**on_device(inputs, next(model.parameters()).device, model.dtype))
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"The images do not fit the model. A batch of one is {tuple(pixels.shape)}, and the model is made for "
                f"{getattr(setup.source.config, 'num_channels', 3)} channels and images of size "
                f"{getattr(setup.source.config, 'image_size', 'any')}: {str(error).splitlines()[0]}"
            ) from error

    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """One image of the training data."""
        assert collator is not None
        batch = dict(collator([rows[0]]))
        batch.pop("labels", None)
        shape = "×".join(map(str, batch[PIXEL_COLUMN].shape[1:]))
        return Workload(
            inputs=lambda model, device: on_device(batch, device, model.dtype),
            facts={"latency_input": f"one image of {shape}"},
        )


def check_labels(batch: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Check that the user's own collator returns labels that the model has.

    Raises:
        ValueError: it returns no labels, or unknown ones.
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


# Text classifiers: tuned by transformers' Trainer, measured by accuracy.


class TextClassification(_Classification):
    """Predict the class of a text or of a pair of texts."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    adapter_type = "SEQ_CLS"
    row_name = "text"
    measures = classifier_measures("text")

    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Tokenize texts or pairs of texts."""
        assert setup.max_length is not None
        from loraprune.data.sentences import prepare_sentences  # imported late: datasets takes a second to import

        return prepare_sentences(rows, setup.processor, setup.source.config, max_length=setup.max_length)

    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator:
        """The user's own collator, or one that pads."""
        from transformers import DataCollatorWithPadding

        if setup.collator is not None:
            return setup.collator
        tokenizer = copy.deepcopy(setup.processor)
        give_pad_token_(tokenizer)
        return DataCollatorWithPadding(tokenizer)

    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """One text."""
        tokens = min(LATENCY_TOKENS, context or LATENCY_TOKENS)

        def inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
            ids = random_tokens(model, tokens, device)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        return Workload(
            inputs=inputs,
            facts={"latency_input": f"1 × {tokens} tokens"},
        )
