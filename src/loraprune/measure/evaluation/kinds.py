"""The measures of an evaluation: held-out rows, prompts, tasks, texts."""

from __future__ import annotations

import hashlib
import json
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.progress import Progress, ProgressOf
from loraprune.checkpoint.source import ModelSource
from loraprune.data.chat_prompt import chat_prompt, check_chat_template
from loraprune.data.named import DataSource, find_sources
from loraprune.measure.evaluation.config import EvaluationConfig
from loraprune.measure.evaluation.evaluation import (
    Evaluation,
    check_context,
    check_largest,
    check_tokens,
    encoding_of,
)
from loraprune.metrics.accuracy import accuracy, target_quality
from loraprune.metrics.completions import DEFAULT_PROMPTS, Writing, complete_prompts, read_prompts
from loraprune.metrics.perplexity import HeldOutRows
from loraprune.metrics.tasks import ChosenTask, LoadedTask, load_task, score_task, texts_of
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import Text
from loraprune.metrics.windows import Windows, cut_into_windows
from loraprune.tasks.options import RunOptions
from loraprune.tasks.registry import task_of_source
from loraprune.tasks.rows import check_token_ids, rows_to_measure_on
from loraprune.tasks.task import Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSIFIERS = ("image-classification", "text-classification")
TEXT_TO_TEXT = "text-to-text"
_DEFAULT_MAX_LENGTH = 2048


class RowsEvaluation(Evaluation):
    """Accuracy of a classifier, or quality of the targets that an encoder–decoder model writes."""

    option = "--data"

    def __init__(self, config: EvaluationConfig, dtype: Callable[[ModelSource], torch.dtype]) -> None:
        sources = find_sources(config.data)
        self.name = " + ".join(_place(source).name for source in sources)
        facts = [_facts(source, config.split, config.data_name) for source in sources]
        self.data = {
            **(facts[0] if len(facts) == 1 else {"sources": facts}),
            **({} if config.columns is None else {"columns": config.columns}),
        }
        self._config, self._dtype = config, dtype
        self._held_out: dict[str, HeldOutRows] = {}

    def check(self, model: ModelSource) -> None:
        """Prepare the rows."""
        task = task_of_source(model)
        task.check_model(model.config)
        options = RunOptions(
            eval_data=self._config.data,
            eval_split=self._config.split,
            data_name=self._config.data_name,
            columns=self._config.columns,
            eval_sequences=self._config.limit or sys.maxsize,
            trust_remote_code=model.trust_remote_code,
        )
        setup = Setup(
            source=model,
            dtype=self._dtype(model),
            processor=model.tokenizer if task.has_tokenizer else task.find_image_processor(None, model),
            max_length=self._length(model),
            collator=None,
            options=options,
        )
        held_out = rows_to_measure_on(task, setup).held_out
        assert isinstance(held_out, HeldOutRows)
        if task.has_tokenizer:
            check_token_ids(held_out.rows, len(model.tokenizer), model.config)
        self._held_out[model.name] = held_out

    def _length(self, model: ModelSource) -> int | None:
        if not task_of_source(model).has_tokenizer:
            return None
        if self._config.max_length is None:
            return min(_DEFAULT_MAX_LENGTH, model.context or _DEFAULT_MAX_LENGTH)
        check_context(self._config.max_length, model)
        return self._config.max_length

    def settings(self, model: ModelSource) -> dict[str, Any]:
        """Limit, and the length of text rows."""
        length = self._length(model)
        return {"limit": self._config.limit, **({} if length is None else {"max_length": length})}

    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """Figures of the model's task."""
        what = f"{self.name} {task_of_source(source).row_name}s"
        return self._figures(source, model, self._held_out[source.name], partial(progress, what))

    @abstractmethod
    def _figures(
        self, source: ModelSource, model: PreTrainedModel, rows: HeldOutRows, progress: Progress
    ) -> dict[str, Any]:
        """The figures by name."""


class AccuracyEvaluation(RowsEvaluation):
    """Accuracy and loss of a classifier."""

    kind = "accuracy"
    tasks = CLASSIFIERS

    def _figures(
        self, source: ModelSource, model: PreTrainedModel, rows: HeldOutRows, progress: Progress
    ) -> dict[str, Any]:
        return asdict(accuracy(model, rows, shared=True, progress=progress))


class TargetsEvaluation(RowsEvaluation):
    """Likelihood of targets, and the number of targets that greedy decoding reproduces exactly."""

    kind = "targets"
    tasks = (TEXT_TO_TEXT,)

    def _figures(
        self, source: ModelSource, model: PreTrainedModel, rows: HeldOutRows, progress: Progress
    ) -> dict[str, Any]:
        found = target_quality(model, rows, source.tokenizer, generated=len(rows), shared=True, progress=progress)
        return asdict(found)


def _place(source: DataSource) -> Path:
    """Path of the data, or its Hub name; ``.`` is resolved to a name."""
    return source.paths[0].resolve() if len(source.paths) == 1 else Path(source.name)


def _facts(source: DataSource, split: str, data_name: str | None) -> dict[str, Any]:
    """Identity of the data: hashes of files, or the name of a Hub dataset."""
    weight = {} if source.weight is None else {"weight": source.weight}
    if not source.paths:
        return {"source": source.place, "name": source.config or data_name, "split": split, **weight}
    config = source.config or (None if source.is_file else data_name)
    named = {**({} if source.is_file else {"split": split}), **({} if config is None else {"name": config}), **weight}
    digest = hashlib.sha256()
    for path in source.paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(str(file.relative_to(path)).encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"source": _place(source).name, "sha256": digest.hexdigest(), **named}


# Completions of prompts, to read side by side.

DRAWN_ONLY = ("temperature", "top_p", "seed")


class PromptsEvaluation(Evaluation):
    """Completions of given prompts, of prompts from files, or of our own if none are given."""

    kind = "completions"
    tasks = ("causal-lm", "text-to-text")
    option = "--prompts"

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config
        self._prompts = list(read_prompts(config.prompts or DEFAULT_PROMPTS))
        drawn = {"temperature": config.temperature, "top_p": config.top_p}
        self._writing = Writing(
            max_new_tokens=config.max_new_tokens,
            sample=config.sample,
            seed=config.seed,
            **{name: value for name, value in drawn.items() if value is not None},
        )
        digest = hashlib.sha256(json.dumps(self._prompts).encode()).hexdigest()
        self.name, self.data = "prompts", {"prompts": len(self._prompts), "sha256": digest}

    def check(self, model: ModelSource) -> None:
        """Check that the model has the prompts' tokens, and its tokenizer a chat template if one is requested."""
        if self._config.apply_chat_template:
            check_chat_template(model.tokenizer, model.name, self._config.system_prompt)
        check_tokens(model, self._prompts, "a prompt")

    def settings(self, model: ModelSource) -> dict[str, Any]:
        """Settings for choosing tokens."""
        drawn = self._writing.sample
        written = {name: value for name, value in asdict(self._writing).items() if drawn or name not in DRAWN_ONLY}
        return written | encoding_of(model) | self._config.chat_settings

    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """Prompts with their completions."""
        prompts = self._prompts
        if self._config.apply_chat_template:
            prompts = [chat_prompt(source.tokenizer, prompt, self._config.system_prompt) for prompt in prompts]
        texts = complete_prompts(
            model,
            source.tokenizer,
            prompts,
            self._writing,
            shared=True,
            progress=partial(progress, "completions"),
        )
        pairs = zip(self._prompts, texts, strict=True)
        return {"completions": [{"prompt": prompt, "completion": text} for prompt, text in pairs]}


# Tasks of lm-eval, and local files of items like them.


class TaskEvaluation(Evaluation):
    """Scores of a model in one task."""

    kind = "task"
    tasks = ("causal-lm", "text-to-text")
    option = "--tasks"

    def __init__(self, chosen: ChosenTask, config: EvaluationConfig) -> None:
        self.name, self.data = chosen.name, dict(chosen.data)
        self._chosen, self._config = chosen, config
        self._loaded: LoadedTask | None = None

    def check(self, model: ModelSource) -> None:
        """Load the task's data, and check that the model has its tokens."""
        if self._config.max_length is not None:
            check_context(self._config.max_length, model)
        if self._loaded is None:
            self._loaded = load_task(self._chosen)
            self.data = dict(self._loaded.data)
        check_tokens(model, texts_of(self._loaded), f"the task {self.name}")
        if self._config.apply_chat_template:
            check_chat_template(model.tokenizer, model.name, self._config.system_prompt)

    def settings(self, model: ModelSource) -> dict[str, Any]:
        """Shots, limit, seed, and the maximum number of tokens per request."""
        given = {name: getattr(self._config, name) for name in ("limit", "max_length", "seed")}
        return {"num_fewshot": self._chosen.num_fewshot, **given, **encoding_of(model), **self._config.chat_settings}

    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """Its metrics with standard errors, and counts."""
        assert self._loaded is not None
        score = score_task(
            model,
            source.tokenizer,
            self._loaded,
            limit=self._config.limit,
            batch_size=self._config.batch_size or "auto",
            max_length=self._config.max_length,
            seed=self._config.seed,
            chat=self._config.apply_chat_template,
            system_prompt=self._config.system_prompt,
            shared=True,
            progress=progress,
        )
        return score.to_values()


# Perplexity of a text.


class TextEvaluation(Evaluation):
    """Perplexity of a causal language model on a text."""

    kind = "perplexity"
    tasks = ("causal-lm",)
    option = "--ppl"

    def __init__(self, text: Text, length: int, config: EvaluationConfig) -> None:
        self.name, self.data = text.name, text.facts
        self._text, self._length, self._config = text, length, config
        self._windows: dict[str, Windows] = {}

    def check(self, model: ModelSource) -> None:
        """Tokenize the text, and check its length and that the model has its tokens."""
        windows = cut_into_windows(
            self._text,
            model.tokenizer,
            length=self._length,
            stride=self._config.stride,
            limit=self._config.limit,
            bos=self._config.bos,
        )
        check_largest(model, int(windows.ids_WL.max()), f"the text {self.name!r}")
        self._windows[model.name] = windows

    def settings(self, model: ModelSource) -> dict[str, Any]:
        """Length, stride and limit, and whether segments start with a token of their own."""
        given = {"max_length": self._length, "stride": self._config.stride, "limit": self._config.limit}
        return given | encoding_of(model, self._config.bos)

    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """Perplexities, bits per byte, and counts."""
        label = f"{self.name}@{self._length}"
        measured = text_perplexity(
            model,
            self._windows[source.name],
            batch_size=self._config.batch_size,
            shared=True,
            progress=partial(progress, f"{label} tokens"),
        )
        return asdict(measured)
