"""The one-shot recipe: prune a model on calibration data, without training, and hand back an ordinary checkpoint."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.calibration.block_by_block import Calibration, calibration_pass
from loraprune.calibration.progress import ToldOf
from loraprune.calibration.residual_stream import has_stream
from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.importance.moving_average import Scores
from loraprune.layers.inference import inference_mode
from loraprune.metrics.batches import Collator
from loraprune.pruning.oneshot import StructuredOptions, prune_
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.pruning.phases import DENSE, LOADING, RESULT, SCORING_AND_CUTTING, WRITING, ZEROING, Phases
from loraprune.recipes.oneshot_calibration import draw, facts_of, warn_of_few_tokens
from loraprune.recipes.oneshot_reporting import card_of, measures_of, notes_of
from loraprune.recipes.steps.check_oneshot import OneshotJob, prepare_oneshot
from loraprune.recipes.steps.measure import in_place_to_measure, measure_dense, measure_pruned
from loraprune.recipes.steps.record import oneshot_recipe
from loraprune.record.course import dimensions_of
from loraprune.record.history import history_of
from loraprune.record.report_data import ReportData
from loraprune.record.run_record import run_record
from loraprune.report.from_record import importance_of, report_of
from loraprune.report.page_of_run import write_page
from loraprune.sparsity.whole_model import MatrixRecord, sparsify_
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.output_error import ConsumerError
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class OneshotResult:
    """What a run gives back.

    Attributes:
        model: ready to use.
        tokenizer: of a model that reads text, else None.
        image_processor: of a model that reads images, where it has one.
        structure: of the model before pruning.
        plan: which groups stayed; all of them where weights became zero.
        matrices: what became of each matrix, where weights became zero.
        metrics: measures of the dense and of the pruned model, as plain values.
        report: the same as the report shows it.
        output: folder of the checkpoint, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    structure: Structure
    plan: Plan
    matrices: tuple[MatrixRecord, ...]
    metrics: dict[str, Any] = field(repr=False)
    report: ReportData = field(repr=False)
    output: Path | None = None
    image_processor: Any = None


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    """What pruning left behind."""

    plan: Plan
    importance: Scores = field(default_factory=dict)
    matrices: tuple[MatrixRecord, ...] = ()
    repair: str | None = None
    errors: tuple[tuple[ConsumerError, ...], ...] = ()


def oneshot(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset | None = None,
    config: OneshotConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    told: ToldOf = lambda what, done, total: None,
    image_processor: Any = None,
    collator: Collator | None = None,
) -> OneshotResult:
    """Prune a model on calibration data, without training.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        dataset: calibration data, in any form that :func:`loraprune.prune` takes; None for methods that read weights
            alone.
        config: what to prune, and how; the default is half of the prunable parameters, by the default method.
        tokenizer: of the model; None loads it from the checkpoint.
        options: where the result goes, what is measured, and so on.
        told: hears how far the work is: what is being done, steps done, and how many there are.
        image_processor: of an image classifier, or the name of a checkpoint that has one; None loads the model's own.
        collator: makes batches of rows in place of the task's own; data of images may then have any columns.

    Returns:
        The pruned model in memory, and its folder if one was asked for.

    Raises:
        ValueError: something given is wrong; raised before any long work.
        ArithmeticError: calibration data make NaN or Inf.
    """
    job = prepare_oneshot(
        model,
        dataset,
        config or OneshotConfig(ratio=0.5),
        tokenizer,
        options or RunOptions(),
        image_processor=image_processor,
        collator=collator,
    )
    started, phases = time.time(), Phases()
    logger.info("Loading %s", job.name)
    with phases.timed(LOADING):
        loaded = job.load_model() if job.model is None else job.model
    with phases.timed(DENSE), in_place_to_measure(job, loaded) as fits:
        dense = measure_dense(job, loaded) if fits else {}
    calibration = draw(job)
    prune = _cut if job.oneshot.structured else _sparsified
    with phases.timed(SCORING_AND_CUTTING if job.oneshot.structured else ZEROING):
        pruned = prune(job, loaded, calibration, told)
    return _finish(job, loaded, pruned, dense, {"calibration": facts_of(calibration)}, started, phases)


def _sparsified(job: OneshotJob, model: PreTrainedModel, calibration: Calibration, told: ToldOf) -> _Pruned:
    """Weights become zero."""
    options = job.oneshot.sparsity_options()
    records = sparsify_(
        model,
        job.structure,
        calibration_pass(model, job.structure, calibration, job.computing) if calibration else None,
        options,
        lambda done, total: told(options.method, done, total),
    )
    return _Pruned(plan=Plan.full(job.structure), matrices=tuple(records))


def _cut(job: OneshotJob, model: PreTrainedModel, calibration: Calibration, told: ToldOf) -> _Pruned:
    """Heads and channels go."""
    config = job.oneshot
    warn_of_few_tokens(job, calibration)
    if config.value("repair") == "bias":
        give_biases_(model, job.structure)
    repair = _repair(job, model, calibration)
    options = StructuredOptions(
        ratio=job.ratio,
        scores=config.score_options(),
        allocation=config.value("allocation"),
        repair=repair,
        damping=config.damping,
        cuts=config.value("cuts"),
        device=job.computing,
    )
    result = prune_(model, job.structure, job.legal_widths(), calibration, options, told)
    return _Pruned(plan=result.plan, importance=result.importance, repair=repair, errors=result.errors)


def _repair(job: OneshotJob, model: PreTrainedModel, calibration: Calibration) -> str:
    """The repair that is done: towards the residual stream only where there is one."""
    repair: str = job.oneshot.value("repair")
    if repair != "stream":
        return repair
    with inference_mode(model):
        if has_stream(model, job.structure, calibration, job.computing):
            return repair
    logger.info(
        "Blocks of this model do more than to add their layers' outputs to a residual stream, so that the refit "
        "restores what each layer gave itself."
    )
    return "refit"


def _course(job: OneshotJob, finished: PreTrainedModel, pruned: _Pruned) -> dict[str, Any]:
    """What is told of the run beside the measures."""
    facts = {name: value for name, value in job.rows.prepared.facts.items() if name != "trained_tokens"}
    course: dict[str, Any] = {"data": facts}
    if job.oneshot.structured:
        removed = pruned.plan.removed_parameters(job.structure)
        course["pruning"] = {
            "ratio": pruned.plan.ratio(job.structure),
            "target_ratio": job.ratio,
            "parameters_before": job.structure.num_parameters,
            "parameters": finished.num_parameters(),
            "prunable_parameters_before": job.structure.prunable_parameters,
            "prunable_parameters": job.structure.prunable_parameters - removed,
            "repair": pruned.repair,
            "widths": {kind: list(pruned.plan.counts(job.structure, kind)) for kind in job.structure.kinds},
            "dimensions": dimensions_of(job.structure),
            "refit_errors": [
                {"step": 0, "cut_number": number, **asdict(error)}
                for number, errors in enumerate(pruned.errors, 1)
                for error in errors
            ],
        }
    else:
        weights = sum(matrix.weights for matrix in pruned.matrices)
        zeros = sum(matrix.zeros for matrix in pruned.matrices)
        course["sparsity"] = {
            "target": job.oneshot.pattern.ratio,
            "pattern": str(job.oneshot.pattern),
            "reached": zeros / weights,
            "weights": weights,
            "zeros": zeros,
            "matrices": [asdict(matrix) for matrix in pruned.matrices],
        }
    return course


def _finish(
    job: OneshotJob,
    model: PreTrainedModel,
    pruned: _Pruned,
    dense: dict[str, Any],
    course: dict[str, Any],
    started: float,
    phases: Phases,
) -> OneshotResult:
    """Measure and save."""
    finished = finish(model, job.structure, pruned.plan, dtype=job.stored_dtype)
    course = course | _course(job, finished, pruned)
    plan = pruned.plan if job.oneshot.structured else None
    with phases.timed(RESULT), in_place_to_measure(job, finished) as fits:
        metrics = measure_pruned(job, finished, dense, course, plan, sizes_only=not fits)
    if not job.oneshot.structured:
        zeros_before = sum(matrix.zeros_before for matrix in pruned.matrices)
        metrics["dense"]["nonzero"] = job.structure.num_parameters - zeros_before
        metrics["pruned"]["nonzero"] = finished.num_parameters() - course["sparsity"]["zeros"]
    metrics["seconds"] = time.time() - started
    metrics["phases"] = dict(phases.seconds)
    settings = {"oneshot": job.settings()}
    record = run_record(job.name, job.task.name, settings, metrics, pruned.plan, job.options.command)
    record["recipe"] = oneshot_recipe(job)
    history = history_of(job)
    if history is not None:
        record["base_pruning"] = history
    report = report_of(
        record,
        measures_of(job),
        importance=importance_of(job.structure, pruned.plan, pruned.importance),
        prompt=job.options.prompt,
        notes=notes_of(job, metrics),
    )
    if job.options.output is not None:
        report = _save(job, finished, record, report, phases)
        metrics["phases"] = record["metrics"]["phases"]
    return OneshotResult(
        model=finished,
        tokenizer=job.tokenizer,
        structure=job.structure,
        plan=pruned.plan,
        matrices=pruned.matrices,
        metrics=metrics,
        report=report,
        output=job.options.output,
        image_processor=job.image_processor,
    )


def _save(
    job: OneshotJob, finished: PreTrainedModel, record: dict[str, Any], report: ReportData, phases: Phases
) -> ReportData:
    """Write everything; record and report are told how long the weights took. Returns the report as written."""
    output = job.options.output
    assert output is not None
    logger.info("Writing %s", output)
    phases.begin()

    def extras(folder: Path) -> None:
        nonlocal report
        phases.lap(WRITING)
        record["metrics"]["phases"] = dict(phases.seconds)
        report = replace(report, phases=record["metrics"]["phases"])
        if job.options.report:
            write_page(report, folder, output)

    card = card_of(job, record, runtimes_of(finished))
    save_checkpoint(output, finished, job.processor, record=record, card=card, extras=extras)
    return report
