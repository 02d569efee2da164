"""From what was asked for to what is measured: all of it is read and checked before any weight is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from loraprune.measure.evaluation.config import DEFAULT_TEXT, EvaluationConfig
from loraprune.measure.evaluation.evaluation import Evaluation, check_context
from loraprune.measure.evaluation.prompts import PromptsEvaluation
from loraprune.measure.evaluation.subjects import (
    CLASSIFIERS,
    TEXT_TO_TEXT,
    AccuracyEvaluation,
    RowsEvaluation,
    TargetsEvaluation,
)
from loraprune.measure.evaluation.task import TaskEvaluation
from loraprune.measure.evaluation.text import TextEvaluation
from loraprune.metrics.texts import TextSource, find_texts, read_text
from loraprune.tasks.source import Measurable

logger = logging.getLogger("loraprune")

DEFAULT_LENGTH = 2048


def plan_evaluations(
    config: EvaluationConfig, models: Sequence[Measurable], device: torch.device
) -> tuple[Evaluation, ...]:
    """Everything that was asked for, checked against every model.

    Raises:
        ValueError: something does not exist, cannot be read, or does not fit a model.
    """
    sources = find_texts(_default(models) if config.asks_for_nothing else config.ppl)
    # Kinds of models, names and prompts before texts and data, which may have to be fetched.
    for kind in _kinds(config, models, texts=bool(sources)):
        for model in models:
            kind.check_kind(model)
    tasks = _tasks(config)
    prompts = [] if config.prompts is None else [PromptsEvaluation.of(config)]
    evaluations: list[Evaluation] = [*_texts(config, sources, models), *_rows(config, models, device), *tasks, *prompts]
    for evaluation in evaluations:
        for model in models:
            evaluation.check(model)
    return tuple(evaluations)


def _default(models: Sequence[Measurable]) -> tuple[str, ...]:
    """What is measured where nothing was asked for.

    Raises:
        ValueError: a model is no causal language model, and there is nothing that suits every model of its kind.
    """
    for model in models:
        if model.task.name != "causal-lm":
            raise ValueError(
                f"{model.name} is made for {model.task.name}: say what to measure it on, with --data DATA."
            )
    logger.info("Nothing was asked for: perplexity is measured on %s (--ppl %s)", DEFAULT_TEXT, DEFAULT_TEXT)
    return (DEFAULT_TEXT,)


def _kinds(config: EvaluationConfig, models: Sequence[Measurable], *, texts: bool) -> list[type[Evaluation]]:
    """Everything that was asked for, by its class."""
    return [
        *([TextEvaluation] if texts else []),
        *([] if config.data is None else [_kind_of_rows(models[0])]),
        *([TaskEvaluation] if config.tasks else []),
        *([] if config.prompts is None else [PromptsEvaluation]),
    ]


def _kind_of_rows(model: Measurable) -> type[RowsEvaluation]:
    """What is measured on labelled data; the first model decides.

    Raises:
        ValueError: nothing is, of a model of its kind.
    """
    task = model.task.name
    if task in CLASSIFIERS:
        return AccuracyEvaluation
    if task == TEXT_TO_TEXT:
        return TargetsEvaluation
    raise ValueError(
        f"--data is for classifiers of images or texts and for encoder–decoder models, and {model.name} is made for "
        f"{task}. Name a text with --ppl, or a task with --tasks."
    )


def _texts(
    config: EvaluationConfig, sources: Sequence[TextSource], models: Sequence[Measurable]
) -> list[TextEvaluation]:
    if not sources:
        return []
    length = segment_length(config, models)
    return [
        TextEvaluation(
            read_text(source), length=length, stride=config.stride, limit=config.limit, batch_size=config.batch_size
        )
        for source in sources
    ]


def _rows(config: EvaluationConfig, models: Sequence[Measurable], device: torch.device) -> list[RowsEvaluation]:
    if config.data is None:
        return []
    kind = _kind_of_rows(models[0])
    return [
        kind(
            str(config.data),
            split=config.split,
            data_name=config.data_name,
            max_length=config.max_length,
            limit=config.limit,
            dtype=lambda model: model.dtype(config.dtype, device),
        )
    ]


def _tasks(config: EvaluationConfig) -> list[TaskEvaluation]:
    if not config.tasks:
        return []
    from loraprune.metrics.tasks import check_tasks

    return [
        TaskEvaluation(
            chosen,
            limit=config.limit,
            max_length=config.max_length,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        for chosen in check_tasks(config.tasks, num_fewshot=config.num_fewshot, limit=config.limit)
    ]


def segment_length(config: EvaluationConfig, models: Sequence[Measurable]) -> int:
    """Tokens of a segment: one length for all models, since figures of two lengths do not compare.

    Raises:
        ValueError: a model cannot read so much, or the stride is no shorter.
    """
    if config.max_length is not None:
        for model in models:
            check_context(config.max_length, model)
        return config.max_length
    contexts = [model.context for model in models if model.context is not None]
    length = min(DEFAULT_LENGTH, *contexts) if contexts else DEFAULT_LENGTH
    if config.stride is not None and config.stride >= length:
        raise ValueError(f"--stride is {config.stride}, and segments have {length} tokens. Use a shorter stride.")
    return length
