"""Evaluating models: perplexity, tasks, completions, accuracy, with results that are kept and found again."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache

from loraprune.measure.evaluation.config import EvaluationConfig
from loraprune.measure.evaluation.evaluate import plan_evaluations
from loraprune.measure.evaluation.evaluation import Evaluation
from loraprune.measure.evaluation.results import Entry, Results
from loraprune.measure.evaluation.results_file import ResultsFile
from loraprune.measure.model import MeasuredModel, load_measured, named_device
from loraprune.record.run_record import machine_description
from loraprune.record.timestamp import timestamp
from loraprune.record.versions import versions
from loraprune.tasks.source import Measurable, check_measurable

if TYPE_CHECKING:
    from loraprune.calibration.progress import ToldOf

logger = logging.getLogger("loraprune")


def evaluate(
    models: str | Path | Sequence[str | Path], config: EvaluationConfig | None = None, *, told: ToldOf | None = None
) -> Results:
    """Measure models, one after the other, and keep every figure with what it belongs to.

    Everything is checked before the first weights are loaded. Where an output file is named, each figure is written as
    soon as there is one; what the file holds already, of the same model, data and settings, is not measured again.

    Args:
        models: folders or hub names, adapters among them; one or several.
        config: what to evaluate on.
        told: told how far each measure is.

    Returns:
        The figures that were asked for, model by model.

    Raises:
        ValueError: a model, a text, a task or an option is wrong; ResultsError of an output file that cannot be used.
    """
    config = config or EvaluationConfig()
    names = list(dict.fromkeys(str(model) for model in _listed(models)))
    if not names:
        raise ValueError("No model was named. Give a checkpoint's folder or its hub name.")
    device = named_device(config.device)
    file = ResultsFile(config.output, force=config.force)
    found = [
        check_measurable(
            name,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            tokenizer=config.tokenizer,
            base=config.base,
        )
        for name in names
    ]
    evaluations = plan_evaluations(config, found, device)
    entries: list[Entry] = []
    try:
        for number, model in enumerate(found):
            if number:
                # Models are full of cycles, so that the one before may still be there.
                clear_device_cache(garbage_collection=True)
            entries += _of_model(model, evaluations, config, device, file, told or (lambda what, done, total: None))
    except BaseException:
        if file.num_kept:
            logger.warning("What was measured until now is in %s.", file.path)
        raise
    return Results(tuple(entries))


def _listed(models: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [models] if isinstance(models, (str, Path)) else models


def _of_model(
    model: Measurable,
    evaluations: Sequence[Evaluation],
    config: EvaluationConfig,
    device: torch.device,
    file: ResultsFile,
    told: ToldOf,
) -> list[Entry]:
    """All figures of one model, in the order in which they were asked for; its weights are loaded if need be."""
    fingerprint, dtype = model.fingerprint(), model.dtype(config.dtype, device)
    where = {"dtype": str(dtype).removeprefix("torch."), "device": device.type}
    loaded: MeasuredModel | None = None
    entries = []
    for evaluation in evaluations:
        blank = Entry(
            model=model.name,
            fingerprint=fingerprint,
            kind=evaluation.kind,
            name=evaluation.name,
            settings=evaluation.settings(model) | where,
            data=evaluation.data,
        )
        known = file.find(blank.key)
        if known is not None:
            logger.info("%s: %s is in %s, from %s", model.name, blank.label, file.path, known.created)
            # Under the name of today: the same model may have been elsewhere.
            entries.append(replace(known, model=model.name))
            continue
        if loaded is None:
            logger.info("Loading %s", model.name)
            loaded = load_measured(model, dtype=dtype, device=device, known_fingerprint=fingerprint)
        logger.info("%s: measuring %s", model.name, blank.label)
        entry = _measured(blank, evaluation, loaded, told)
        file.add(entry)
        entries.append(entry)
    return entries


def _measured(blank: Entry, evaluation: Evaluation, loaded: MeasuredModel, told: ToldOf) -> Entry:
    started = time.time()
    values: dict[str, Any] = evaluation.measure(loaded, told)
    return replace(
        blank,
        parameters=loaded.model.num_parameters(),
        values=values,
        created=timestamp(),
        seconds=round(time.time() - started, 3),
        versions=_versions(blank.kind),
        machine=machine_description(),
    )


def _versions(kind: str) -> dict[str, str]:
    """Versions of what shapes a figure: of tasks, the harness', too."""
    if kind != "task":
        return versions()
    return versions() | {"lm_eval": importlib.metadata.version("lm_eval")}
