"""Evaluation of several runs with the same texts and segment length. Results are saved beside each run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.checkpoint.source import ModelSource
from loraprune.measure.evaluation.config import EvaluationConfig
from loraprune.measure.evaluation.evaluate import evaluate, segment_length
from loraprune.measure.model import check_measurable
from loraprune.record.run_record import RECORD_FILE, RunRecord

if TYPE_CHECKING:
    from loraprune.calibration.progress import ProgressOf

logger = logging.getLogger("loraprune")


def evaluate_alike(
    runs: Sequence[Path],
    config: EvaluationConfig,
    *,
    results_file: str,
    progress: ProgressOf | None = None,
) -> str:
    """Measure runs and, if available, their starting models. Known results are reused.

    Args:
        runs: folders.
        config: what to measure.
        results_file: name of the file of results in the folder of each run.
        progress: called with the current work, finished steps and all steps.

    Returns:
        Name of the first measure.

    Raises:
        ValueError: a run is not the folder of a model, or a text is wrong.
    """
    for run in runs:
        if not run.is_dir():
            raise ValueError(f"{run} is not a folder here, so --eval cannot measure it. Name the folder of a run.")
    sources = {str(run): check_measurable(ModelSource.of_any(run)) for run in runs}
    began: dict[Path, str] = {}
    for run in runs:
        dense = _began_with(run)
        if dense is None or dense in sources:
            continue
        try:
            sources[dense] = check_measurable(ModelSource.of_any(dense))
        except ValueError as error:
            logger.warning("%s, the model that %s began with, is not measured: %s", dense, run, error)
        else:
            began[run] = dense
    length = segment_length(config, list(sources.values()))
    labels = [
        entry.label
        for run in runs
        for entry in evaluate(
            [*([began[run]] if run in began else []), run],
            replace(config, max_length=length, output=run / results_file),
            progress=progress,
        ).entries
    ]
    return labels[0]


def _began_with(run: Path) -> str | None:
    """Return the starting model of a run; None if it is unknown, or the folder is not a run."""
    if not (run / RECORD_FILE).is_file():
        return None
    return RunRecord.read(run).base_model or None
