"""Evaluation of models: perplexity, tasks, completions, accuracy. Everything is checked before any weight is loaded."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import clear_device_cache

from loraprune.checkpoint.names import DEMO, as_typed
from loraprune.checkpoint.source import ModelSource
from loraprune.compat.renamed import renamed_keywords
from loraprune.measure.evaluation.config import DEFAULT_TEXT, EvaluationConfig
from loraprune.measure.evaluation.evaluation import Evaluation, check_context
from loraprune.measure.evaluation.kinds import (
    CLASSIFIERS,
    TEXT_TO_TEXT,
    AccuracyEvaluation,
    PromptsEvaluation,
    RowsEvaluation,
    TargetsEvaluation,
    TaskEvaluation,
    TextEvaluation,
)
from loraprune.measure.evaluation.results import Entry, Results, ResultsFile
from loraprune.measure.model import check_measurable, measuring_dtype, named_device
from loraprune.metrics.texts import DEMO_TEXT, find_texts, read_text
from loraprune.processes.ranks import from_main, is_main, join, num_processes
from loraprune.processes.shared_work import together
from loraprune.record.provenance import machine_description, timestamp, versions
from loraprune.tasks.registry import task_of_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.calibration.progress import ProgressOf

logger = logging.getLogger("loraprune")


@renamed_keywords(told="progress")
def evaluate(
    models: str | Path | Sequence[str | Path],
    config: EvaluationConfig | None = None,
    *,
    progress: ProgressOf | None = None,
) -> Results:
    """Measure models one after the other, and record every figure with its conditions.

    The processes of a run share the work, and all of them must call this function. The first one writes.

    Everything is checked before the first weights are loaded. If there is an output file, each figure is written as
    soon as it is measured. Figures of the same model, data and settings that the file already has are reused.

    Args:
        models: folders or Hub names, including adapters; one or several.
        config: data and conditions.
        progress: called with the current work, finished steps and all steps; only in the first process.

    Returns:
        The requested figures, model by model.

    Raises:
        ValueError: a model, a text, a task or an option is wrong; ResultsError for an unusable output file.
    """
    config = config or EvaluationConfig()
    names = list(dict.fromkeys(str(model) for model in _listed(models)))
    if not names:
        raise ValueError("The model is missing. Name a checkpoint's folder or its Hub name.")
    join(on_cpu=config.device == "cpu")
    device, file, found, evaluations = together(lambda: _checked(names, config))
    told = progress if progress is not None and is_main() else lambda what, done, total: None
    entries: list[Entry] = []
    try:
        for number, model in enumerate(found):
            if number:
                # Models contain reference cycles, so the previous one may still be in memory.
                clear_device_cache(garbage_collection=True)
            entries += _of_model(model, evaluations, config, device, file, told)
    except BaseException:
        if file.num_kept:
            logger.warning("The results so far are in %s.", file.path)
        raise
    return Results(tuple(entries))


def _checked(
    names: Sequence[str], config: EvaluationConfig
) -> tuple[torch.device, ResultsFile, list[ModelSource], tuple[Evaluation, ...]]:
    """Device, file of results (only in the first process), models, and measures."""
    device = named_device(config.device)
    file = ResultsFile(config.output if is_main() else None, force=config.force)
    found = [
        check_measurable(
            ModelSource.of_any(
                name,
                base=config.base,
                tokenizer=config.tokenizer,
                trust_remote_code=config.trust_remote_code,
                revision=config.revision,
            )
        )
        for name in names
    ]
    return device, file, found, plan_evaluations(config, found, device)


def _listed(models: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [models] if isinstance(models, (str, Path)) else models


def _of_model(
    model: ModelSource,
    evaluations: Sequence[Evaluation],
    config: EvaluationConfig,
    device: torch.device,
    file: ResultsFile,
    progress: ProgressOf,
) -> list[Entry]:
    """Return all figures of one model, in the requested order. Its weights are loaded if necessary."""
    dtype = measuring_dtype(model, config.dtype, device)
    where = {"dtype": str(dtype).removeprefix("torch."), "device": device.type}
    loaded: PreTrainedModel | None = None
    entries = []
    for evaluation in evaluations:
        blank = Entry(
            model=model.name,
            fingerprint=model.fingerprint,
            kind=evaluation.kind,
            name=evaluation.name,
            settings=evaluation.settings(model) | where,
            data=evaluation.data,
        )
        known = from_main(partial(file.find, blank.key))
        if known is not None:
            logger.info("%s: %s is in %s, from %s", as_typed(model.name), blank.label, file.path, known.created)
            # Under the current name, because the same model may have been elsewhere.
            entries.append(replace(known, model=model.name))
            continue
        if loaded is None:
            logger.info("Loading %s", as_typed(model.name))
            loaded = together(partial(model.load, dtype, device))
        logger.info("%s: measuring %s", as_typed(model.name), blank.label)
        started = time.time()
        values = together(partial(evaluation.measure, model, loaded, progress))
        entry = replace(
            blank,
            parameters=loaded.num_parameters(),
            values=values,
            created=timestamp(),
            seconds=round(time.time() - started, 3),
            versions=_versions(blank.kind),
            machine=machine_description() | _processes(),
        )
        entries.append(from_main(partial(_kept, file, entry)))
    return entries


def _kept(file: ResultsFile, entry: Entry) -> Entry:
    file.add(entry)
    return entry


def _processes() -> dict[str, int]:
    """Number of processes that shared the work, if there were several."""
    return {} if num_processes() == 1 else {"processes": num_processes()}


def _versions(kind: str) -> dict[str, str]:
    """Versions of libraries that affect a figure, including the harness for tasks."""
    if kind != "task":
        return versions()
    return versions() | {"lm_eval": importlib.metadata.version("lm_eval")}


# From the request to the measures: everything is read and checked before any weight is loaded.


DEFAULT_LENGTH = 2048


def plan_evaluations(
    config: EvaluationConfig, models: Sequence[ModelSource], device: torch.device
) -> tuple[Evaluation, ...]:
    """Return everything requested, checked against every model.

    Raises:
        ValueError: something does not exist, cannot be read, or does not fit a model.
    """
    sources = find_texts(_default(models) if config.asks_for_nothing else config.ppl)
    # Check kinds of models, names and prompts before texts and data, which may need a download.
    rows = None if config.data is None else _kind_of_rows(models[0])
    kinds: list[type[Evaluation] | None] = [TextEvaluation if sources else None, rows]
    kinds += [TaskEvaluation if config.tasks else None, None if config.prompts is None else PromptsEvaluation]
    for kind in filter(None, kinds):
        for model in models:
            kind.check_kind(model)
    tasks = _tasks(config)
    prompts = [] if config.prompts is None else [PromptsEvaluation(config)]
    length = segment_length(config, models) if sources else 0
    evaluations: list[Evaluation] = [TextEvaluation(read_text(source), length, config) for source in sources]
    if rows is not None:
        evaluations.append(rows(config, lambda model: measuring_dtype(model, config.dtype, device)))
    evaluations += [*tasks, *prompts]
    for evaluation in evaluations:
        for model in models:
            evaluation.check(model)
    return tuple(evaluations)


def _default(models: Sequence[ModelSource]) -> tuple[str, ...]:
    """Return the default measures if nothing was requested.

    Raises:
        ValueError: a model is not a causal language model, and no default suits every model of its kind.
    """
    for model in models:
        task = task_of_source(model).name
        if task != "causal-lm":
            raise ValueError(f"{model.name} is made for {task}. Name the data to measure it on with --data DATA.")
    text = DEMO_TEXT if as_typed(models[0].name) == DEMO else DEFAULT_TEXT
    logger.info("Without options, perplexity is measured on %s (--ppl %s)", text, text)
    return (text,)


def _kind_of_rows(model: ModelSource) -> type[RowsEvaluation]:
    """Return the measure for labeled data, by the first model.

    Raises:
        ValueError: there is none for models of its kind.
    """
    task = task_of_source(model).name
    if task in CLASSIFIERS:
        return AccuracyEvaluation
    if task == TEXT_TO_TEXT:
        return TargetsEvaluation
    raise ValueError(
        f"--data is for classifiers of images or texts and for encoder–decoder models, and {model.name} is made for "
        f"{task}. Name a text with --ppl, or a task with --tasks."
    )


def _tasks(config: EvaluationConfig) -> list[TaskEvaluation]:
    if not config.tasks:
        return []
    from loraprune.metrics.tasks import check_tasks

    chosen = check_tasks(config.tasks, num_fewshot=config.num_fewshot, limit=config.limit)
    return [TaskEvaluation(task, config) for task in chosen]


def segment_length(config: EvaluationConfig, models: Sequence[ModelSource]) -> int:
    """Tokens per segment: one length for all models, because figures of different lengths are not comparable.

    Raises:
        ValueError: the length exceeds a model's context, or the stride is not shorter.
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
