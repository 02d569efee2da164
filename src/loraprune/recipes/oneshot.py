"""The one-shot recipe: prune a model on calibration data without training, and return an ordinary checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.allocation.measured_widths import WidthTrial
from loraprune.calibration.block_by_block import Calibration, calibration_pass
from loraprune.calibration.progress import ProgressOf
from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.compat.renamed import renamed_keywords
from loraprune.display.shown import run_display
from loraprune.importance.moving_average import Scores
from loraprune.metrics.perplexity import Collator
from loraprune.processes.ranks import entered_by_main, is_main, join, wait
from loraprune.pruning.calibration_data import warn_of_few_tokens
from loraprune.pruning.groups import CutRecord, Groups
from loraprune.pruning.oneshot import prune_, settled_repair
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
from loraprune.pruning.phase_timer import DENSE, LOADING, RESULT, SCORING_AND_CUTTING, WRITING, ZEROING, PhaseTimer
from loraprune.recipes.result import RunResult
from loraprune.recipes.steps.calibrate import draw, facts_of
from loraprune.recipes.steps.check_oneshot import prepare_oneshot
from loraprune.recipes.steps.goals import speed_notes
from loraprune.recipes.steps.judge import check_result
from loraprune.recipes.steps.measure import in_place_to_measure, measure_dense, measure_pruned
from loraprune.recipes.steps.norms import norm_tuning
from loraprune.recipes.steps.oneshot_state import saved_steps
from loraprune.recipes.steps.outlook import show_outlook
from loraprune.recipes.steps.prepared import PreparedOneshot, RunInputs
from loraprune.recipes.steps.push import pushed
from loraprune.recipes.steps.record import dimensions_of, oneshot_recipe, record_of, tried_widths, with_phases
from loraprune.recipes.steps.verify import load_back_check
from loraprune.record.claims import claimed
from loraprune.record.pruning_course import NormsRecord, PruningCourse, RepairError
from loraprune.record.report_data import ReportData
from loraprune.record.run_record import MatrixRecord, ModelMeasures, RunMetrics, RunRecord, SparsityCourse
from loraprune.record.saved_steps import SavedSteps
from loraprune.report.card import card_of
from loraprune.report.from_record import importance_of, report_of, write_run_page
from loraprune.sparsity.whole_model import sparsify_
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.repairs import Bias
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.data.named import Data

logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class OneshotResult(RunResult):
    """Result of :func:`oneshot`.

    Attributes:
        matrices: zeros and error of each matrix, if weights were set to zero.
    """

    matrices: tuple[MatrixRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    """Outcome of pruning."""

    plan: Plan
    importance: Scores = field(default_factory=dict)
    matrices: tuple[MatrixRecord, ...] = ()
    repair: str | None = None
    cuts: tuple[CutRecord, ...] = ()
    trials: tuple[WidthTrial, ...] = ()
    norms: NormsRecord | None = None


@renamed_keywords(told="progress", dataset="data")
def oneshot(
    model: str | Path | PreTrainedModel,
    data: Data | None = None,
    config: OneshotConfig | SparseConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    progress: ProgressOf | None = None,
    image_processor: Any = None,
    collator: Collator | None = None,
    verbosity: str = "warnings",
) -> OneshotResult:
    """Prune a model on calibration data, without training.

    Args:
        model: a checkpoint's folder or Hub name, or a loaded model, modified in place.
        data: calibration data, in any form that :func:`loraprune.prune` takes; None for criteria and repairs that only
            read weights.
        config: pruning configuration; the default removes half of the prunable parameters.
        tokenizer: tokenizer of the model; None loads it from the checkpoint.
        options: output, measurements and other options of the run.
        progress: called with the name of the work, finished steps and total steps; replaces the display of
            ``verbosity``.
        image_processor: image processor of a classifier, or name of a checkpoint with one; None loads the model's.
        collator: function that batches rows, instead of the task's own; image data may then have any columns.
        verbosity: ``progress`` prints the same as the command line to standard error; ``warnings`` or ``silent``.

    Returns:
        The pruned model in memory, and its folder if you set an output.

    Raises:
        ValueError: an argument is wrong; raised before any long work.
        InterruptedRunError: the run was stopped; finished blocks are saved, and ``RunOptions(resume=True)`` resumes.
        ArithmeticError: calibration data give NaN or Inf, or a weight of the result is NaN or Inf.
        BadResultError: the result is no better than chance; ``allow_bad_result`` writes it.
        DryRunError: ``RunOptions(dry_run=True)``: all checks passed, and no work was done.
    """
    inputs = RunInputs(
        tokenizer=tokenizer, options=options or RunOptions(), image_processor=image_processor, collator=collator
    )
    join()
    claim = entered_by_main(lambda: claimed(None if inputs.options.dry_run else inputs.options.output))
    with run_display(verbosity) as display:
        with claim:
            prepared = prepare_oneshot(model, data, config or OneshotConfig(ratio=0.5), inputs)
            wait()
            show_outlook(prepared, display)
            with saved_steps(prepared) as saved:
                result = _run(prepared, progress or display.steps, saved)
                wait()
        return pushed(result, inputs.options)


def _run(prepared: PreparedOneshot, progress: ProgressOf, saved: SavedSteps) -> OneshotResult:
    """Load, measure, prune, measure again and save."""
    started, phases = time.time(), PhaseTimer()
    logger.info("Loading %s", prepared.typed_name)
    with phases.timed(LOADING):
        loaded = prepared.load_model()
    with phases.timed(DENSE), in_place_to_measure(prepared, loaded) as fits:
        dense = measure_dense(prepared, loaded) if fits else ModelMeasures()
    calibration = draw(prepared)
    if isinstance(prepared.oneshot, SparseConfig):
        with phases.timed(ZEROING):
            pruned = _sparsified(prepared, prepared.oneshot, loaded, calibration, progress, saved)
    else:
        with phases.timed(SCORING_AND_CUTTING):
            pruned = _cut(prepared, prepared.oneshot, loaded, calibration, progress, saved)
    return _finish(prepared, loaded, pruned, dense, calibration, started, phases)


def _sparsified(
    prepared: PreparedOneshot,
    config: SparseConfig,
    model: PreTrainedModel,
    calibration: Calibration,
    progress: ProgressOf,
    saved: SavedSteps,
) -> _Pruned:
    """Set weights to zero."""
    records = sparsify_(
        model,
        prepared.structure,
        calibration_pass(model, prepared.structure, calibration, prepared.computing) if calibration else None,
        config.criterion,
        config.pattern,
        lambda done, total: progress(config.name, done, total),
        saved,
    )
    return _Pruned(plan=Plan.full(prepared.structure), matrices=tuple(records))


def _cut(
    prepared: PreparedOneshot,
    config: OneshotConfig,
    model: PreTrainedModel,
    calibration: Calibration,
    progress: ProgressOf,
    saved: SavedSteps,
) -> _Pruned:
    """Remove heads and channels."""
    warn_of_few_tokens(prepared.structure, calibration, config.repair, config.criterion)
    if isinstance(config.repair, Bias):
        give_biases_(model, prepared.structure)
    repair = settled_repair(config.repair, model, prepared.structure, calibration, prepared.computing)
    groups = Groups.all_of(prepared.structure, config.target, config.criterion)
    tune_norms_ = norm_tuning(prepared, config, model, calibration, saved)
    cuts = prune_(
        model,
        groups,
        calibration,
        repair=repair,
        cuts=config.cuts,
        seed=config.seed,
        device=prepared.computing,
        progress=progress,
        saved=saved,
    )
    return _Pruned(
        plan=groups.plan,
        importance=groups.importance,
        repair=repair.name,
        cuts=tuple(cuts),
        trials=groups.trials,
        norms=tune_norms_(partial(progress, "tuning the norms")),
    )


def _course(
    prepared: PreparedOneshot, config: OneshotConfig, finished: PreTrainedModel, pruned: _Pruned
) -> PruningCourse:
    """Return the record of removed heads and channels."""
    structure, removed = prepared.structure, pruned.plan.removed_parameters(prepared.structure)
    return PruningCourse(
        ratio=pruned.plan.ratio(structure),
        target_ratio=config.target.ratio,
        parameters_before=structure.num_parameters,
        parameters=finished.num_parameters(),
        prunable_parameters_before=structure.prunable_parameters,
        prunable_parameters=structure.prunable_parameters - removed,
        repair=pruned.repair,
        widths={kind: pruned.plan.counts(structure, kind) for kind in structure.kinds},
        dimensions=dimensions_of(structure),
        trials=tried_widths(structure, pruned.trials),
        norms=pruned.norms,
        refit_errors=tuple(
            RepairError(step=0, cut_number=number, **asdict(error))
            for number, cut in enumerate(pruned.cuts, 1)
            for error in cut.errors
        ),
    )


def _with_zeros(
    metrics: RunMetrics, prepared: PreparedOneshot, config: SparseConfig, matrices: Sequence[MatrixRecord]
) -> RunMetrics:
    """Add the sparsity reached, and the numbers of zeros before and after."""
    weights, zeros = sum(matrix.weights for matrix in matrices), sum(matrix.zeros for matrix in matrices)
    zeros_before = sum(matrix.zeros_before for matrix in matrices)
    dense, pruned = (
        replace(measures, nonzero=(measures.parameters or 0) - count)
        for measures, count in ((metrics.dense, zeros_before), (metrics.pruned, zeros))
    )
    sparsity = SparsityCourse(
        target=config.pattern.ratio,
        pattern=str(config.pattern),
        reached=zeros / weights,
        weights=weights,
        zeros=zeros,
        matrices=tuple(matrices),
    )
    return replace(metrics, dense=dense, pruned=pruned, sparsity=sparsity)


def _finish(
    prepared: PreparedOneshot,
    model: PreTrainedModel,
    pruned: _Pruned,
    dense: ModelMeasures,
    calibration: Calibration,
    started: float,
    phases: PhaseTimer,
) -> OneshotResult:
    """Measure and save."""
    finished = finish(model, prepared.structure, pruned.plan, dtype=prepared.saved_dtype)
    if prepared.options.output is not None:
        check_finite(finished)  # before measuring
    config = prepared.oneshot
    plan = None if isinstance(config, SparseConfig) else pruned.plan
    with phases.timed(RESULT), in_place_to_measure(prepared, finished) as fits:
        metrics = measure_pruned(prepared, finished, dense, plan, sizes_only=not fits)
    if isinstance(config, SparseConfig):
        metrics = _with_zeros(metrics, prepared, config, pruned.matrices)
    else:
        metrics = replace(metrics, pruning=_course(prepared, config, finished, pruned))
    metrics = replace(
        metrics,
        calibration=facts_of(calibration),
        data={name: value for name, value in prepared.rows.prepared.facts.items() if name != "trained_tokens"},
        seconds=time.time() - started,
        phases=dict(phases.seconds),
    )
    check_result(prepared, metrics, None, "--allow-bad-result keeps such a result")
    record = record_of(prepared, {"oneshot": prepared.settings()}, oneshot_recipe(prepared), metrics, pruned.plan)
    report = report_of(
        record,
        importance=importance_of(prepared.structure, pruned.plan, pruned.importance),
        prompt=prepared.options.prompt,
        notes=notes_of(prepared, pruned.plan, metrics),
    )
    card = card_of(record, prepared.structure, runtimes_of(finished), **prepared.origins())
    if prepared.options.output is not None and is_main():
        record, report = _save(prepared, finished, record, report, card, phases)
    return OneshotResult(
        model=finished,
        tokenizer=prepared.tokenizer,
        structure=prepared.structure,
        plan=pruned.plan,
        matrices=pruned.matrices,
        report=report,
        run_record=record,
        card=card,
        output=prepared.options.output,
        image_processor=prepared.image_processor,
    )


def _save(
    prepared: PreparedOneshot,
    finished: PreTrainedModel,
    record: RunRecord,
    report: ReportData,
    card: str,
    phases: PhaseTimer,
) -> tuple[RunRecord, ReportData]:
    """Write everything; add the time for writing the weights to record and report, and return both."""
    output = prepared.options.output
    assert output is not None
    logger.info("Writing %s", output)
    phases.begin()

    def extras(folder: Path) -> None:
        nonlocal record, report
        phases.lap(WRITING)
        record, report = with_phases(record, report, phases.seconds)
        record = record.write(folder)
        if prepared.options.report:
            write_run_page(report, folder, output)

    overwrite = prepared.options.overwrite
    check = load_back_check(prepared.options, finished)
    save_checkpoint(output, finished, prepared.processor, card=card, extras=extras, overwrite=overwrite, check=check)
    return record, report


# Notes for the report of a run without training.

_NOTED_DEVIATION = 0.002


def notes_of(prepared: PreparedOneshot, plan: Plan, metrics: RunMetrics) -> tuple[str, ...]:
    """Return notes for the reader of the report."""
    pruning, sparsity = metrics.pruning, metrics.sparsity
    if sparsity is not None and sparsity.reached is not None and sparsity.target is not None:
        if abs(sparsity.reached - sparsity.target) <= _NOTED_DEVIATION:
            return ()
        amounts = f"{100 * sparsity.reached:.2f} % rather than {100 * sparsity.target:.2f} %"
        return (f"The sparsity is {amounts}: rows have whole numbers of weights.",)
    assert pruning is not None
    speed = speed_notes(prepared, plan, metrics)
    if isinstance(prepared.oneshot, OneshotConfig) and prepared.oneshot.target.widths is not None:
        return speed
    if pruning.ratio == 0.0:
        return (f"Nothing was removed: the ratio {pruning.target_ratio:g} is below half of the smallest step.",)
    if abs(pruning.ratio - pruning.target_ratio) <= _NOTED_DEVIATION:
        return ()
    why = "the config limits the head counts, and FFN widths are rounded"
    if isinstance(prepared.oneshot, OneshotConfig) and prepared.oneshot.target.allocation == "global":
        why = "groups are removed whole"
    if prepared.structure.spans_blocks:
        why = "blocks are removed whole" if "blocks" in prepared.structure.kinds else "the hidden size is rounded"
    return (f"The ratio is {100 * pruning.ratio:.2f} % rather than {100 * pruning.target_ratio:.2f} %: {why}.",)
