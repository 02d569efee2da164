"""The one-shot recipe: prune a model on calibration data, without training, and hand back an ordinary checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.calibration.block_by_block import Calibration, calibration_pass
from loraprune.calibration.progress import ProgressOf
from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.compat.renamed import renamed_keywords
from loraprune.importance.moving_average import Scores
from loraprune.metrics.perplexity import Collator
from loraprune.pruning.oneshot import StructuredOptions, prune_, settled_repair
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.pruning.phase_timer import DENSE, LOADING, RESULT, SCORING_AND_CUTTING, WRITING, ZEROING, PhaseTimer
from loraprune.recipes.result import RunResult
from loraprune.recipes.steps.calibrate import draw, facts_of, warn_of_few_tokens
from loraprune.recipes.steps.check_oneshot import prepare_oneshot
from loraprune.recipes.steps.measure import in_place_to_measure, measure_dense, measure_pruned
from loraprune.recipes.steps.prepared import PreparedOneshot
from loraprune.recipes.steps.record import oneshot_recipe
from loraprune.record.claims import claimed
from loraprune.record.report_data import ReportData
from loraprune.record.run_record import dimensions_of, run_record
from loraprune.report.card import CardWords, all_widths, base_name, card, removed_kinds, removed_shares
from loraprune.report.from_record import importance_of, report_of, write_run_page
from loraprune.sparsity.whole_model import MatrixRecord, sparsify_
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.output_error import ConsumerError
from loraprune.tasks.options import RunOptions
from loraprune.tasks.task import NONZERO, PARAMETERS, Measure

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class OneshotResult(RunResult):
    """What :func:`oneshot` gives back.

    Attributes:
        matrices: what became of each matrix, where weights became zero.
    """

    matrices: tuple[MatrixRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    """What pruning left behind."""

    plan: Plan
    importance: Scores = field(default_factory=dict)
    matrices: tuple[MatrixRecord, ...] = ()
    repair: str | None = None
    errors: tuple[tuple[ConsumerError, ...], ...] = ()


@renamed_keywords(told="progress")
def oneshot(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset | None = None,
    config: OneshotConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    progress: ProgressOf = lambda what, done, total: None,
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
        progress: called with what is being done, finished steps and all steps.
        image_processor: of an image classifier, or the name of a checkpoint that has one; None loads the model's own.
        collator: makes batches of rows in place of the task's own; data of images may then have any columns.

    Returns:
        The pruned model in memory, and its folder if one was asked for.

    Raises:
        ValueError: something given is wrong; raised before any long work.
        ArithmeticError: calibration data make NaN or Inf, or a weight of the result is one.
    """
    options = options or RunOptions()
    with claimed(options.output):
        prepared = prepare_oneshot(
            model,
            dataset,
            config or OneshotConfig(ratio=0.5),
            tokenizer,
            options,
            image_processor=image_processor,
            collator=collator,
        )
        return _run(prepared, progress)


def _run(prepared: PreparedOneshot, progress: ProgressOf) -> OneshotResult:
    """Load, measure, prune, measure again and save."""
    started, phases = time.time(), PhaseTimer()
    logger.info("Loading %s", prepared.name)
    with phases.timed(LOADING):
        loaded = prepared.load_model() if prepared.model is None else prepared.model
    with phases.timed(DENSE), in_place_to_measure(prepared, loaded) as fits:
        dense = measure_dense(prepared, loaded) if fits else {}
    calibration = draw(prepared)
    prune = _cut if prepared.oneshot.structured else _sparsified
    with phases.timed(SCORING_AND_CUTTING if prepared.oneshot.structured else ZEROING):
        pruned = prune(prepared, loaded, calibration, progress)
    return _finish(prepared, loaded, pruned, dense, {"calibration": facts_of(calibration)}, started, phases)


def _sparsified(
    prepared: PreparedOneshot, model: PreTrainedModel, calibration: Calibration, progress: ProgressOf
) -> _Pruned:
    """Weights become zero."""
    options = prepared.oneshot.sparsity_options()
    records = sparsify_(
        model,
        prepared.structure,
        calibration_pass(model, prepared.structure, calibration, prepared.computing) if calibration else None,
        options,
        lambda done, total: progress(options.method, done, total),
    )
    return _Pruned(plan=Plan.full(prepared.structure), matrices=tuple(records))


def _cut(prepared: PreparedOneshot, model: PreTrainedModel, calibration: Calibration, progress: ProgressOf) -> _Pruned:
    """Heads and channels go."""
    config = prepared.oneshot
    warn_of_few_tokens(prepared, calibration)
    if config.value("repair") == "bias":
        give_biases_(model, prepared.structure)
    wanted = config.value("repair")
    repair = settled_repair(wanted, model, prepared.structure, calibration, prepared.computing)
    options = StructuredOptions(
        ratio=prepared.ratio,
        scores=config.score_options(),
        allocation=config.value("allocation"),
        repair=repair,
        damping=config.damping,
        cuts=config.value("cuts"),
        device=prepared.computing,
    )
    result = prune_(model, prepared.structure, prepared.legal_widths(), calibration, options, progress)
    return _Pruned(plan=result.plan, importance=result.importance, repair=repair, errors=result.errors)


def _facts(prepared: PreparedOneshot, finished: PreTrainedModel, pruned: _Pruned) -> dict[str, Any]:
    """What is told of the run beside the measures."""
    facts = {name: value for name, value in prepared.rows.prepared.facts.items() if name != "trained_tokens"}
    course: dict[str, Any] = {"data": facts}
    if prepared.oneshot.structured:
        removed = pruned.plan.removed_parameters(prepared.structure)
        course["pruning"] = {
            "ratio": pruned.plan.ratio(prepared.structure),
            "target_ratio": prepared.ratio,
            "parameters_before": prepared.structure.num_parameters,
            "parameters": finished.num_parameters(),
            "prunable_parameters_before": prepared.structure.prunable_parameters,
            "prunable_parameters": prepared.structure.prunable_parameters - removed,
            "repair": pruned.repair,
            "widths": {kind: list(pruned.plan.counts(prepared.structure, kind)) for kind in prepared.structure.kinds},
            "dimensions": dimensions_of(prepared.structure),
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
            "target": prepared.oneshot.pattern.ratio,
            "pattern": str(prepared.oneshot.pattern),
            "reached": zeros / weights,
            "weights": weights,
            "zeros": zeros,
            "matrices": [asdict(matrix) for matrix in pruned.matrices],
        }
    return course


def _finish(
    prepared: PreparedOneshot,
    model: PreTrainedModel,
    pruned: _Pruned,
    dense: dict[str, Any],
    course: dict[str, Any],
    started: float,
    phases: PhaseTimer,
) -> OneshotResult:
    """Measure and save."""
    finished = finish(model, prepared.structure, pruned.plan, dtype=prepared.stored_dtype)
    if prepared.options.output is not None:
        check_finite(finished)  # before it is measured
    course = course | _facts(prepared, finished, pruned)
    plan = pruned.plan if prepared.oneshot.structured else None
    with phases.timed(RESULT), in_place_to_measure(prepared, finished) as fits:
        metrics = measure_pruned(prepared, finished, dense, course, plan, sizes_only=not fits)
    if not prepared.oneshot.structured:
        zeros_before = sum(matrix.zeros_before for matrix in pruned.matrices)
        metrics["dense"]["nonzero"] = prepared.structure.num_parameters - zeros_before
        metrics["pruned"]["nonzero"] = finished.num_parameters() - course["sparsity"]["zeros"]
    metrics["seconds"] = time.time() - started
    metrics["phases"] = dict(phases.seconds)
    settings = {"oneshot": prepared.settings()}
    record = run_record(prepared.name, prepared.task.name, settings, metrics, pruned.plan, prepared.options.command)
    record["recipe"] = oneshot_recipe(prepared)
    history = prepared.history()
    if history is not None:
        record["base_pruning"] = history
    report = report_of(
        record,
        measures_of(prepared),
        importance=importance_of(prepared.structure, pruned.plan, pruned.importance),
        prompt=prepared.options.prompt,
        notes=notes_of(prepared, metrics),
    )
    card = card_of(prepared, record, runtimes_of(finished))
    if prepared.options.output is not None:
        report = _save(prepared, finished, record, report, card, phases)
        metrics["phases"] = record["metrics"]["phases"]
    return OneshotResult(
        model=finished,
        tokenizer=prepared.tokenizer,
        structure=prepared.structure,
        plan=pruned.plan,
        matrices=pruned.matrices,
        metrics=metrics,
        report=report,
        record=record,
        card=card,
        output=prepared.options.output,
        image_processor=prepared.image_processor,
    )


def _save(
    prepared: PreparedOneshot,
    finished: PreTrainedModel,
    record: dict[str, Any],
    report: ReportData,
    card: str,
    phases: PhaseTimer,
) -> ReportData:
    """Write everything; record and report are told how long the weights took. Returns the report as written."""
    output = prepared.options.output
    assert output is not None
    logger.info("Writing %s", output)
    phases.begin()

    def extras(folder: Path) -> None:
        nonlocal report
        phases.lap(WRITING)
        record["metrics"]["phases"] = dict(phases.seconds)
        report = replace(report, phases=record["metrics"]["phases"])
        if prepared.options.report:
            write_run_page(report, folder, output)

    save_checkpoint(
        output,
        finished,
        prepared.processor,
        record=record,
        card=card,
        extras=extras,
        overwrite=prepared.options.overwrite,
    )
    return report


# What a run without training tells: notes for its report, and its model card.

_NOTED_DEVIATION = 0.002


def measures_of(prepared: PreparedOneshot) -> tuple[Measure, ...]:
    """Those of the task; where nothing becomes smaller, weights that are not zero in place of parameters."""
    measures = prepared.task.measures
    if prepared.oneshot.structured:
        return measures
    return tuple(NONZERO if measure is PARAMETERS else measure for measure in measures)


def notes_of(prepared: PreparedOneshot, metrics: dict[str, Any]) -> tuple[str, ...]:
    """What the reader has to know."""
    if not prepared.oneshot.structured:
        target, reached = metrics["sparsity"]["target"], metrics["sparsity"]["reached"]
        if abs(reached - target) <= _NOTED_DEVIATION:
            return ()
        return (f"The sparsity is {reached:.2%} rather than {target:.2%}: rows have whole numbers of weights.",)
    reached, target = metrics["pruning"]["ratio"], metrics["pruning"]["target_ratio"]
    if reached == 0.0:
        return (f"Nothing was removed: the ratio of {target:g} is less than half of the smallest step.",)
    if abs(reached - target) <= _NOTED_DEVIATION:
        return ()
    why = "head counts are those that the config accepts, and FFN widths are rounded"
    if prepared.oneshot.value("allocation") == "global":
        why = "a group goes as a whole or not at all"
    if prepared.structure.spans_blocks:
        why = "blocks go as a whole" if "blocks" in prepared.structure.kinds else "the hidden size is rounded"
    return (f"The ratio is {reached:.2%} rather than {target:.2%}: {why}.",)


def card_of(prepared: PreparedOneshot, record: dict[str, Any], runtimes: Sequence[str]) -> str:
    """Write the model card of a run without training."""
    metrics, config = record["metrics"], prepared.oneshot
    name = base_name(record)
    if config.structured:
        pruning = metrics["pruning"]
        title = f"{pruning['ratio']:.0%} pruned"
        what = (
            f"A structurally pruned copy of `{name}`: {removed_kinds(prepared.structure)} were removed without "
            f"training.\n"
            f"{all_widths(pruning['widths'], prepared.structure)}"
        )
        facts = (
            f"{removed_shares(pruning)} Method `{config.name}`,\nallocation `{config.value('allocation')}`, repair "
            f"`{pruning['repair']}`."
        )
    else:
        sparsity = metrics["sparsity"]
        title = f"{sparsity['pattern']} sparse"
        how = f"{sparsity['pattern']}, method `{config.name}`"
        what = (
            f"A sparse copy of `{name}`, made without training: {sparsity['reached']:.2%} of the weights of the\n"
            f"blocks' linear layers are zero ({how}). Shapes and file size are those of the\noriginal, and plain "
            "inference is no faster. A merged LoRA adapter would fill the zeros; `loraprune recover`\ntunes and keeps "
            "them."
        )
        facts = f"Zeros: {sparsity['zeros']:,} of {sparsity['weights']:,} weights."
    return card(
        record, prepared.task, runtimes, title=title, what=what, facts=facts, words=CardWords(command="oneshot")
    )
