"""Labelled images or texts, or pairs of source and target: data in the forms that models are tuned on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from loraprune.calibration.progress import ToldOf
from loraprune.checkpoint.load import meta_model
from loraprune.measure.evaluation.evaluation import Evaluation, check_context
from loraprune.measure.model import MeasuredModel
from loraprune.metrics.accuracy import target_quality
from loraprune.metrics.batches import HeldOutRows
from loraprune.metrics.evaluation_accuracy import accuracy
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import check_token_ids, rows_to_measure_on
from loraprune.tasks.source import Measurable
from loraprune.tasks.task import Setup

CLASSIFIERS = ("image-classification", "text-classification")
TEXT_TO_TEXT = "text-to-text"
DEFAULT_MAX_LENGTH = 2048


class RowsEvaluation(Evaluation):
    """Accuracy of a classifier, or how well an encoder–decoder model writes targets."""

    option = "--data"

    def __init__(
        self,
        source: str,
        *,
        split: str,
        data_name: str | None,
        max_length: int | None,
        limit: int | None,
        dtype: Callable[[Measurable], torch.dtype],
    ) -> None:
        self.name, self.data = _place(source).name, _facts(source, split, data_name)
        self._source, self._split, self._data_name = source, split, data_name
        self._max_length, self._limit, self._dtype = max_length, limit, dtype
        self._held_out: dict[str, HeldOutRows] = {}

    def check(self, model: Measurable) -> None:
        """Prepare the rows."""
        task, config = model.task, model.config
        task.check_model(config)
        options = RunOptions(
            eval_data=self._source,
            eval_split=self._split,
            data_name=self._data_name,
            eval_sequences=self._limit or sys.maxsize,
            trust_remote_code=model.trust_remote_code,
        )
        setup = Setup(
            config=config,
            model=meta_model(config, model.auto_class),
            dtype=self._dtype(model),
            processor=model.image_processor if model.tokenizer is None else model.tokenizer,
            max_length=self._length(model),
            collator=None,
            options=options,
        )
        held_out = rows_to_measure_on(task, setup).held_out
        assert isinstance(held_out, HeldOutRows)
        if model.tokenizer is not None:
            check_token_ids(held_out.rows, len(model.tokenizer), config)
        self._held_out[model.name] = held_out

    def _length(self, model: Measurable) -> int | None:
        if model.tokenizer is None:
            return None
        if self._max_length is None:
            return min(DEFAULT_MAX_LENGTH, model.context or DEFAULT_MAX_LENGTH)
        check_context(self._max_length, model)
        return self._max_length

    def settings(self, model: Measurable) -> dict[str, Any]:
        """Limit, and the length of rows that are text."""
        length = self._length(model)
        return {"limit": self._limit, **({} if length is None else {"max_length": length})}

    def measure(self, model: MeasuredModel, told: ToldOf) -> dict[str, Any]:
        """Figures of the model's task."""
        held_out = self._held_out[model.name]
        # A text is read and then written.
        passes = 2 if model.task.name == TEXT_TO_TEXT else 1
        counted, what = _counted(held_out, passes, told, f"{self.name} {model.task.row_name}"), model.model
        return self._figures(what, counted, model)

    def _figures(self, what: Any, rows: HeldOutRows, model: MeasuredModel) -> dict[str, Any]:
        raise NotImplementedError


class AccuracyEvaluation(RowsEvaluation):
    """Accuracy and loss of a classifier."""

    kind = "accuracy"
    tasks = CLASSIFIERS

    def _figures(self, what: Any, rows: HeldOutRows, model: MeasuredModel) -> dict[str, Any]:
        return asdict(accuracy(what, rows))


class TargetsEvaluation(RowsEvaluation):
    """Likelihood of targets, and how many of them greedy decoding writes word for word."""

    kind = "targets"
    tasks = (TEXT_TO_TEXT,)

    def _figures(self, what: Any, rows: HeldOutRows, model: MeasuredModel) -> dict[str, Any]:
        assert model.tokenizer is not None
        return asdict(target_quality(what, rows, model.tokenizer, generated=len(rows)))


def _counted(held_out: HeldOutRows, passes: int, told: ToldOf, what: str) -> HeldOutRows:
    """The same rows; making a batch tells how many went by before."""
    collator, total, done = held_out.collator, passes * len(held_out), 0

    def collate(rows: list[Any]) -> dict[str, Any]:
        nonlocal done
        done += len(rows)
        told(what, done, total)
        return collator(rows)

    return replace(held_out, collator=collate)


def _place(source: str) -> Path:
    """Where the data is, or the hub's name for it; ``.`` has a name, too."""
    path = Path(source).expanduser()
    return path.resolve() if path.exists() else path


def _facts(source: str, split: str, data_name: str | None) -> dict[str, Any]:
    """What data it is: hashes of files, or a data set of the hub by its name."""
    path = _place(source)
    if not path.exists():
        return {"source": source, "name": data_name, "split": split}
    digest, files = hashlib.sha256(), [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"source": path.name, "sha256": digest.hexdigest(), **({} if path.is_file() else {"split": split})}
