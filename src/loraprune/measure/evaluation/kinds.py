"""What models can be evaluated on: held-out rows, prompts, tasks, texts."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from loraprune.calibration.progress import ProgressOf
from loraprune.checkpoint.load import meta_model
from loraprune.measure.evaluation.config import EvaluationConfig
from loraprune.measure.evaluation.evaluation import Evaluation, check_context
from loraprune.measure.model import MeasuredModel
from loraprune.metrics.accuracy import accuracy, target_quality
from loraprune.metrics.completions import DEFAULT_PROMPTS, Writing, complete_prompts, read_prompts
from loraprune.metrics.perplexity import HeldOutRows
from loraprune.metrics.tasks import ChosenTask, LoadedTask, load_task, score_task
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import Text
from loraprune.metrics.windows import Windows, cut_into_windows
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import check_token_ids, rows_to_measure_on
from loraprune.tasks.source import MeasurableModel
from loraprune.tasks.task import Setup

CLASSIFIERS = ("image-classification", "text-classification")
TEXT_TO_TEXT = "text-to-text"
_DEFAULT_MAX_LENGTH = 2048


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
        dtype: Callable[[MeasurableModel], torch.dtype],
    ) -> None:
        self.name, self.data = _place(source).name, _facts(source, split, data_name)
        self._source, self._split, self._data_name = source, split, data_name
        self._max_length, self._limit, self._dtype = max_length, limit, dtype
        self._held_out: dict[str, HeldOutRows] = {}

    def check(self, model: MeasurableModel) -> None:
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

    def _length(self, model: MeasurableModel) -> int | None:
        if model.tokenizer is None:
            return None
        if self._max_length is None:
            return min(_DEFAULT_MAX_LENGTH, model.context or _DEFAULT_MAX_LENGTH)
        check_context(self._max_length, model)
        return self._max_length

    def settings(self, model: MeasurableModel) -> dict[str, Any]:
        """Limit, and the length of rows that are text."""
        length = self._length(model)
        return {"limit": self._limit, **({} if length is None else {"max_length": length})}

    def measure(self, model: MeasuredModel, progress: ProgressOf) -> dict[str, Any]:
        """Figures of the model's task."""
        held_out = self._held_out[model.name]
        # A text is read and then written.
        passes = 2 if model.task.name == TEXT_TO_TEXT else 1
        counted, what = _counted(held_out, passes, progress, f"{self.name} {model.task.row_name}"), model.model
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


def _counted(held_out: HeldOutRows, passes: int, progress: ProgressOf, what: str) -> HeldOutRows:
    """The same rows; making a batch tells how many went by before."""
    collator, total, done = held_out.collator, passes * len(held_out), 0

    def collate(rows: list[Any]) -> dict[str, Any]:
        nonlocal done
        done += len(rows)
        progress(what, done, total)
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


# Completions of prompts, to be read side by side.

DRAWN_ONLY = ("temperature", "top_p", "seed")


class PromptsEvaluation(Evaluation):
    """What a model writes after prompts."""

    kind = "completions"
    tasks = ("causal-lm", "text-to-text")
    option = "--prompts"

    def __init__(self, prompts: Sequence[str], writing: Writing) -> None:
        digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        self.name, self.data = "prompts", {"prompts": len(prompts), "sha256": digest}
        self._prompts, self._writing = list(prompts), writing

    @classmethod
    def of(cls, config: EvaluationConfig) -> PromptsEvaluation:
        """Prompts as given or from files; our own where none are.

        Raises:
            ValueError: a file is missing or empty.
        """
        assert config.prompts is not None
        drawn = {"temperature": config.temperature, "top_p": config.top_p}
        writing = Writing(
            max_new_tokens=config.max_new_tokens,
            sample=config.sample,
            seed=config.seed,
            **{name: value for name, value in drawn.items() if value is not None},
        )
        return cls(read_prompts(config.prompts or DEFAULT_PROMPTS), writing)

    def check(self, model: MeasurableModel) -> None:
        """Prompts suit every model that writes."""

    def settings(self, model: MeasurableModel) -> dict[str, Any]:
        """How tokens are chosen."""
        drawn = self._writing.sample
        return {name: value for name, value in asdict(self._writing).items() if drawn or name not in DRAWN_ONLY}

    def measure(self, model: MeasuredModel, progress: ProgressOf) -> dict[str, Any]:
        """Prompts with their completions."""
        assert model.tokenizer is not None
        texts = complete_prompts(
            model.model,
            model.tokenizer,
            self._prompts,
            self._writing,
            progress=lambda done, total: progress("completions", done, total),
        )
        pairs = zip(self._prompts, texts, strict=True)
        return {"completions": [{"prompt": prompt, "completion": text} for prompt, text in pairs]}


# Tasks of lm-eval, and local files of items like them.


class TaskEvaluation(Evaluation):
    """What a model reaches in one task."""

    kind = "task"
    tasks = ("causal-lm", "text-to-text")
    option = "--tasks"

    def __init__(
        self, chosen: ChosenTask, *, limit: int | None, max_length: int | None, seed: int, batch_size: int | None
    ) -> None:
        self.name, self.data = chosen.name, dict(chosen.data)
        self._chosen, self._limit, self._max_length = chosen, limit, max_length
        self._seed, self._batch_size = seed, batch_size
        self._loaded: LoadedTask | None = None

    def check(self, model: MeasurableModel) -> None:
        """Fetch the task's data."""
        if self._max_length is not None:
            check_context(self._max_length, model)
        if self._loaded is None:
            self._loaded = load_task(self._chosen)
            self.data = dict(self._loaded.data)

    def settings(self, model: MeasurableModel) -> dict[str, Any]:
        """Shots, limit, seed, and the tokens that the model is given at most."""
        return {
            "num_fewshot": self._chosen.num_fewshot,
            "limit": self._limit,
            "max_length": self._max_length,
            "seed": self._seed,
        }

    def measure(self, model: MeasuredModel, progress: ProgressOf) -> dict[str, Any]:
        """Its metrics with standard errors, and counts."""
        assert self._loaded is not None
        assert model.tokenizer is not None
        score = score_task(
            model.model,
            model.tokenizer,
            self._loaded,
            limit=self._limit,
            batch_size=self._batch_size or "auto",
            max_length=self._max_length,
            seed=self._seed,
            progress=progress,
        )
        return score.to_values()


# Perplexity of a text.


class TextEvaluation(Evaluation):
    """How well a causal language model foretells a text."""

    kind = "perplexity"
    tasks = ("causal-lm",)
    option = "--ppl"

    def __init__(
        self, text: Text, *, length: int, stride: int | None, limit: int | None, batch_size: int | None
    ) -> None:
        self.name, self.data = text.name, text.facts
        self._text, self._length, self._stride, self._limit = text, length, stride, limit
        self._batch_size = batch_size
        self._windows: dict[str, Windows] = {}

    def check(self, model: MeasurableModel) -> None:
        """Tokenize the text; it must be long enough, and the model must know its tokens."""
        assert model.tokenizer is not None
        windows = cut_into_windows(
            self._text, model.tokenizer, length=self._length, stride=self._stride, limit=self._limit
        )
        largest = int(windows.ids_WL.max())
        if model.vocabulary is not None and largest >= model.vocabulary:
            raise ValueError(
                f"The tokenizer does not fit {model.name}: the text {self.name!r} has token {largest}, and the model "
                f"knows {model.vocabulary:,}. Name the right one with --tokenizer."
            )
        self._windows[model.name] = windows

    def settings(self, model: MeasurableModel) -> dict[str, Any]:
        """Length, stride and limit."""
        return {"max_length": self._length, "stride": self._stride, "limit": self._limit}

    def measure(self, model: MeasuredModel, progress: ProgressOf) -> dict[str, Any]:
        """Perplexities, bits per byte, and counts."""
        windows = self._windows[model.name]
        label = f"{self.name}@{self._length}"
        measured = text_perplexity(
            model.model,
            windows,
            batch_size=self._batch_size,
            progress=lambda done, total: progress(f"{label} tokens", done, total),
        )
        return asdict(measured)
