"""The joint recipe: prune a model during LoRA tuning and return an ordinary checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.save import save_checkpoint
from loraprune.compat.renamed import renamed_keywords
from loraprune.display.shown import RunDisplay, run_display
from loraprune.processes.ranks import entered_by_main, is_main, join, wait
from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.errors import InterruptedRunError
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.phase_timer import BASE, DENSE, LOADING, MERGING, PREPARING, RESULT, SCORING_AND_CUTTING, WRITING
from loraprune.pruning.resume import last_checkpoint
from loraprune.recipes.result import RunResult
from loraprune.recipes.steps.adapter_copy import adapter_copy
from loraprune.recipes.steps.calibrate import draw_rows
from loraprune.recipes.steps.check import prepare
from loraprune.recipes.steps.evaluation import Evaluations
from loraprune.recipes.steps.goals import speed_notes
from loraprune.recipes.steps.judge import check_result, cuts_missing, kept_state
from loraprune.recipes.steps.measure import measure_dense, measure_pruned
from loraprune.recipes.steps.outlook import show_outlook
from loraprune.recipes.steps.prepared import PreparedTraining, RunInputs
from loraprune.recipes.steps.push import pushed
from loraprune.recipes.steps.quantized import attach_originals_, finished_model, is_measurable, quantization_notes
from loraprune.recipes.steps.record import (
    dimensions_of,
    record_of,
    run_settings,
    training_recipe,
    tried_widths,
    with_phases,
)
from loraprune.recipes.steps.sharded import made_whole, shared_among
from loraprune.recipes.steps.train import build_trainer, remove_unsaved, train
from loraprune.recipes.steps.verify import load_back_check
from loraprune.recipes.steps.zeros import filling_note, settle_zeros
from loraprune.record.claims import claimed
from loraprune.record.codec import decode, encode
from loraprune.record.pruning_course import PruningCourse
from loraprune.record.report_data import EvaluationPoint, HistoryPoint, ReportData
from loraprune.record.run_record import ModelMeasures, RunMetrics, RunRecord, SparsityCourse
from loraprune.report.card import card_of
from loraprune.report.from_record import importance_of, report_of, write_run_page
from loraprune.sparsity.zeros import Zeros, zeros_of
from loraprune.tasks.event_files import copy_event_files
from loraprune.tasks.options import LoraOptions, RunOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

    from loraprune.data.named import Data
    from loraprune.metrics.perplexity import Collator

logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class PruneResult(RunResult):
    """Result of :func:`prune` and :func:`loraprune.recover`."""


@renamed_keywords(dataset="data")
def prune(
    model: str | Path | PreTrainedModel,
    data: Data,
    config: PruningConfig | None = None,
    *,
    training: Mapping[str, Any] | TrainingArguments | None = None,
    lora: LoraConfig | LoraOptions | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    image_processor: Any = None,
    collator: Collator | None = None,
    verbosity: str = "warnings",
) -> PruneResult:
    """Prune a model during LoRA tuning.

    The model's class decides its task: causal language modeling, sequence-to-sequence (encoder–decoder models), image
    classification or text classification.

    Args:
        model: a checkpoint's folder or Hub name, or a loaded model, modified in place.
        data: a file, a pattern of files, a folder, a Hub dataset's name, or a loaded dataset; or a list of these, in
            which each name may have a weight: ``["a.jsonl:0.7", "b.jsonl:0.3"]``. Columns for causal language models:
            text, prompt and completion, instruction and output, or messages; for encoder–decoder models: source and
            target, prompt and completion, or instruction and output; for classifiers: image or text, and label.
        config: pruning configuration; the default halves the prunable parameters.
        training: training arguments by name, or an object. For causal language models these are fields of trl's
            SFTConfig, for others those of transformers' TrainingArguments (and max_length, for text). Values by name
            are completed with our defaults. An object is used as it is, except for its output_dir: the run's
            checkpoints are beside the result.
        lora: our options or peft's configuration; the default has a rank by size, alpha 16, and all layers in groups.
        tokenizer: tokenizer of the model; None loads it from the checkpoint.
        options: output, measurements and other options of the run.
        callbacks: further callbacks of the Trainer.
        image_processor: image processor of a classifier, or name of a checkpoint with one; None loads the model's.
        collator: function that batches rows, instead of the task's own; image data may then have any columns.
        verbosity: ``progress`` prints the same as the command line to standard error; ``warnings`` or ``silent``.

    Returns:
        The pruned model in memory, and its folder if you set an output.

    Raises:
        ValueError: an argument is wrong; raised before any long work.
        InterruptedRunError: the run was stopped; the state is saved, and ``RunOptions(resume=True)`` resumes from it.
        TrainingDivergedError: gradients stayed NaN or Inf; the last good state is saved.
        BadResultError: cuts are missing, or the result is no better than chance; ``allow_bad_result`` writes it.
        DryRunError: ``RunOptions(dry_run=True)``: all checks passed, and no work was done.
    """
    inputs = RunInputs(
        training=training,
        lora=lora,
        tokenizer=tokenizer,
        options=options or RunOptions(),
        image_processor=image_processor,
        collator=collator,
    )
    with run_display(verbosity) as display:
        with run_folder(inputs.options) as run_dir:
            prepared = prepare(model, data, config or PruningConfig(), inputs, run_dir)
            result = run(prepared, run_dir, callbacks, display)
        return pushed(result, inputs.options)


@contextmanager
def run_folder(options: RunOptions) -> Iterator[Path]:
    """Yield the folder of the run's checkpoints: beside the output, or temporary if there is no output.

    No other run can write to the output or to this folder during the ``with`` block.
    """
    join()
    claim = entered_by_main(lambda: claimed(None if options.dry_run else options.output))
    with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch, claim:
        yield options.run_dir or Path(scratch)
        wait()


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The model before the run.

    Attributes:
        measures: quality of the model.
        zeros: zeros in its blocks' linear layers.
        config: copy of its config.
        generation_config: copy of its generation config, or None.
    """

    measures: ModelMeasures
    zeros: Zeros
    config: Any
    generation_config: Any


def run(
    prepared: PreparedTraining, run_dir: Path, callbacks: Sequence[TrainerCallback], display: RunDisplay
) -> PruneResult:
    """Train, merge, measure and save; see :func:`prune`."""
    started = time.time()
    outlook = show_outlook(prepared, display)
    wait()
    if prepared.options.overwrite and prepared.checkpoint is None and is_main():
        # After all checks, because an interrupted run is valuable.
        shutil.rmtree(run_dir, ignore_errors=True)
    wait()
    pruning = PruningCallback(prepared.pruning)
    phases = pruning.phases
    logger.info("Loading %s%s", prepared.typed_name, shared_among(prepared.options))
    with phases.timed(LOADING):
        model = prepared.load_model()
        teacher = prepared.load_teacher(model)
        attach_originals_(prepared, model)
        zeros = zeros_of(model, prepared.structure)
    prepared.keep_zeros = settle_zeros(prepared, model, zeros)
    with phases.timed(DENSE if not prepared.recovery else BASE):
        measures = measure_dense(prepared, model)
    base = _Base(
        measures=measures,
        zeros=zeros,
        # Trainers set special tokens and switch caches off; the result gets the original settings.
        config=copy.deepcopy(model.config),
        generation_config=copy.deepcopy(getattr(model, "generation_config", None)),
    )
    if prepared.checkpoint is not None:
        logger.info("Resuming from %s", prepared.checkpoint)
        pruning.restore_(model, prepared.checkpoint)
        if prepared.options.allow_changes and pruning.run is not None:
            pruning.run.total_steps = 0  # the remaining cuts follow the schedule of the new length
    elif prepared.pruning.cuts_first and prepared.pruning.target.ratio > 0.0:
        logger.info("Cutting before the first step")
        calibration = draw_rows(prepared, prepared.pruning.calibration_sequences, prepared.pruning.seed)
        with phases.timed(SCORING_AND_CUTTING):
            pruning.cut_first_(model, calibration, display.steps)
    try:
        with phases.timed(PREPARING):
            progress = display.training(
                pruning,
                work=None if outlook is None else outlook.work,
                eval_steps=prepared.options.eval_steps or 0,
            )
            evaluations = Evaluations(prepared, pruning, progress.evaluated)
            trainer = build_trainer(prepared, model, pruning, [*callbacks, progress], teacher)
    except BaseException:
        remove_unsaved(run_dir, prepared)
        raise
    train(trainer, pruning, prepared, run_dir, evaluations)
    try:
        return _finish(prepared, trainer, pruning, base, run_dir, started, evaluations.points)
    except KeyboardInterrupt:
        saved = remove_unsaved(run_dir, prepared)
        how = f"training is done; resume it from {run_dir} with --resume" if saved else "start again"
        raise InterruptedRunError(f"Stopped before the result was written: {how}.") from None
    except BaseException:
        remove_unsaved(run_dir, prepared)
        raise


def _finish(
    prepared: PreparedTraining,
    trainer: Trainer,
    pruning: PruningCallback,
    base: _Base,
    run_dir: Path,
    started: float,
    evaluations: Sequence[EvaluationPoint],
) -> PruneResult:
    """Merge, measure and save."""
    assert pruning.run is not None
    phases = pruning.phases
    logger.info("Merging the adapter")
    with phases.timed(MERGING):
        adapter = adapter_copy(trainer.model, pruning, prepared, run_dir)
        finished: Any = trainer.model
        _restore_config_(finished.get_base_model(), base.config, base.generation_config)
        merged = finished_model(prepared, finished, pruning.run)
    zeros = zeros_of(merged, prepared.structure)
    with phases.timed(RESULT):
        fits = is_measurable(prepared, merged)
        metrics = measure_pruned(prepared, merged, base.measures, pruning.run.plan, sizes_only=not fits)
    merged = made_whole(prepared, merged, pruning.run)
    if base.zeros.are_sparsity or prepared.unstructured:
        metrics = _with_zeros(metrics, prepared, pruning, base.zeros, zeros)
    metrics = replace(
        metrics,
        pruning=None if prepared.recovery or prepared.unstructured else _cuts(prepared, pruning),
        steps=pruning.steps,
        history=tuple(HistoryPoint(**point) for point in pruning.history),
        evaluations=tuple(evaluations) or None,
        skipped_steps=tuple(pruning.skipped_steps),
        data=prepared.rows.prepared.facts,
        seconds=time.time() - started + phases.earlier,
        phases=dict(phases.seconds),
    )
    check_result(prepared, metrics, pruning, kept_state(last_checkpoint(run_dir)))
    record = record_of(prepared, run_settings(prepared), training_recipe(prepared), metrics, pruning.run.plan)
    report = joint_report(prepared, record, pruning, base.zeros)
    card = card_of(record, prepared.structure, runtimes_of(merged), **prepared.origins())
    if prepared.options.output is not None and is_main():
        record, report = write_result(prepared, merged, record, report, card, pruning, adapter, run_dir)
        if not prepared.options.keep_run:
            shutil.rmtree(run_dir, ignore_errors=True)
    return PruneResult(
        model=merged,
        tokenizer=prepared.tokenizer,
        plan=pruning.run.plan,
        structure=pruning.run.structure,
        report=report,
        run_record=record,
        card=card,
        output=prepared.options.output,
        image_processor=prepared.image_processor,
    )


def _cuts(prepared: PreparedTraining, pruning: PruningCallback) -> PruningCourse:
    """Return the record of the cuts, with the dimensions of the plan."""
    assert pruning.run is not None
    course = decode(PruningCourse, encode(pruning.run.summary()))
    trials = tried_widths(prepared.structure, pruning.run.groups.trials) if isinstance(pruning.run, GroupRun) else ()
    return replace(course, dimensions=dimensions_of(prepared.structure), trials=trials)


def _with_zeros(
    metrics: RunMetrics, prepared: PreparedTraining, pruning: PruningCallback, before: Zeros, after: Zeros
) -> RunMetrics:
    """Add the zeros of the blocks' matrices before and after the run; for PST, also the target."""
    assert pruning.run is not None
    course = encode(pruning.run.summary()) if prepared.unstructured else {}
    sparsity = decode(SparsityCourse, {**course, "before": before.to_json(), "after": after.to_json()})
    dense, pruned = (
        replace(measures, nonzero=(measures.parameters or 0) - zeros.count)
        for measures, zeros in ((metrics.dense, before), (metrics.pruned, after))
    )
    return replace(metrics, dense=dense, pruned=pruned, sparsity=sparsity)


_SET_BY_TRAINERS = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("use_cache", "output_router_logits", "router_aux_loss_coef"),
)


def _restore_config_(base: Any, config: Any, generation_config: Any) -> None:
    """Undo what Trainers change in the configs."""
    for name in _SET_BY_TRAINERS:
        if hasattr(config, name):
            setattr(base.config, name, getattr(config, name))
    if generation_config is not None:
        base.generation_config = generation_config


# Output of a run of the joint recipe: report and notes, adapter, and result folder.

_NOTED_DEVIATION = 0.002


def joint_report(prepared: PreparedTraining, record: RunRecord, pruning: PruningCallback, zeros: Zeros) -> ReportData:
    """Make the report of a run; ``zeros`` are those of the model before the run."""
    assert pruning.run is not None
    importance = importance_of(pruning.run.structure, pruning.run.plan, pruning.run.importance)
    notes = (*speed_notes(prepared, pruning.run.plan, record.metrics), *_notes(prepared, pruning, zeros))
    return report_of(record, importance=importance, prompt=prepared.options.prompt, notes=notes)


def _notes(prepared: PreparedTraining, pruning: PruningCallback, zeros: Zeros) -> tuple[str, ...]:
    """Return notes for the reader of the report."""
    assert pruning.run is not None
    notes = [*quantization_notes(prepared)]
    if zeros.are_sparsity and not prepared.keep_zeros and not prepared.unstructured:
        notes.append(filling_note(prepared, zeros))
    missing, wanted = cuts_missing(pruning), prepared.pruning.target.ratio
    is_off = prepared.pruning.target.widths is None
    is_off = is_off and isinstance(pruning.run, GroupRun) and abs(pruning.run.ratio - wanted) > _NOTED_DEVIATION
    if missing is not None:
        notes.append(missing)
    elif isinstance(pruning.run, GroupRun) and is_off:
        multiple = pruning.run.legal_widths().channel_multiple
        widths = f"FFN widths are multiples of {multiple}, and " if multiple > 1 else ""
        why = f"{widths}the config limits the head counts"
        if prepared.structure.spans_blocks:
            why = "blocks are removed whole" if "blocks" in prepared.structure.kinds else "the hidden size is rounded"
        notes.append(f"The ratio is {100 * pruning.run.ratio:.2f} % rather than {100 * wanted:.2f} %: {why}.")
    if pruning.skipped_steps:
        steps = ", ".join(str(step) for step in pruning.skipped_steps)
        notes.append(f"Steps skipped because of NaN or Inf in the gradients: {steps}.")
    return tuple(notes)


def write_result(
    prepared: PreparedTraining,
    merged: PreTrainedModel,
    record: RunRecord,
    report: ReportData,
    card: str,
    pruning: PruningCallback,
    adapter: Path | None,
    run_dir: Path,
) -> tuple[RunRecord, ReportData]:
    """Write everything; add the time for writing the weights to record and report, and return both."""
    output = prepared.options.output
    assert output is not None
    assert pruning.run is not None
    plan = pruning.run.plan
    logger.info("Writing %s", output)
    pruning.phases.begin()

    def extras(folder: Path) -> None:
        nonlocal record, report
        pruning.phases.lap(WRITING)
        record, report = with_phases(record, report, pruning.phases.seconds)
        record = record.write(folder)
        if prepared.options.report:
            write_run_page(report, folder, output)
        copy_event_files(run_dir, folder)
        if adapter is not None:
            shutil.copytree(adapter, folder / "adapter")
        if adapter is not None and not prepared.recovery and not prepared.unstructured:
            (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")

    overwrite = prepared.options.overwrite
    check = load_back_check(prepared.options, merged)
    save_checkpoint(output, merged, prepared.processor, card=card, extras=extras, overwrite=overwrite, check=check)
    return record, report
