"""The joint recipe: prune a model while LoRA tunes it, and hand back an ordinary checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from loraprune.export import finish, save_checkpoint
from loraprune.interruption import InterruptedRunError
from loraprune.plan import Plan
from loraprune.recipes.card import model_card
from loraprune.recipes.interrupt import StopOnInterrupt
from loraprune.recipes.lora import LoraOptions
from loraprune.recipes.measuring import measure_dense, measure_pruned
from loraprune.recipes.options import RunOptions
from loraprune.recipes.preparing import TrainingJob, prepare
from loraprune.recipes.record import run_record
from loraprune.recipes.reporting import report_data
from loraprune.recipes.settings import run_settings
from loraprune.report.data import ReportData
from loraprune.runtimes.overview import runtimes_of
from loraprune.structure import Structure
from loraprune.training.callback import PruningCallback
from loraprune.training.config import PruningConfig
from loraprune.training.state import last_checkpoint, refitted_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from loraprune.evaluation.batches import Collator

logger = logging.getLogger("loraprune")

NOTED_DEVIATION = 0.002


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What a run gives back.

    Attributes:
        model: merged and ready to use.
        tokenizer: of a model that reads text, else None.
        image_processor: of a model that reads images, where it has one.
        plan: which groups stayed.
        structure: of the model before pruning.
        metrics: measures of the dense and of the pruned model, and the course of the run, as plain values.
        report: the same as the report shows it.
        output: folder of the checkpoint, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    plan: Plan
    structure: Structure
    metrics: dict[str, Any] = field(repr=False)
    report: ReportData = field(repr=False)
    output: Path | None = None
    image_processor: Any = None


def prune(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    config: PruningConfig | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    lora: LoraConfig | LoraOptions | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    image_processor: Any = None,
    collator: Collator | None = None,
) -> PruneResult:
    """Prune a model while LoRA tunes it.

    The model's class decides what it is tuned for: going on with text, writing a target for a source (encoder–decoder
    models), classifying images, classifying texts.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        dataset: a file, a folder, a hub data set's name, or a loaded data set. Columns of causal language models: text,
            prompt and completion, instruction and output, or messages; of encoder–decoder models: source and target,
            or prompt and completion, or instruction and output; of classifiers: image or text, and label.
        config: what to prune; the default halves the prunable parameters.
        training: fields of trl's SFTConfig, by name; of transformers' TrainingArguments (and max_length, for text) for
            all but causal language models.
        lora: our options or peft's configuration; the default is the paper's (r 8, alpha 16, all layers in groups).
        tokenizer: of the model; None loads it from the checkpoint.
        options: where the result goes, what is measured, and so on.
        callbacks: further callbacks of the Trainer.
        image_processor: of an image classifier, or the name of a checkpoint that has one; None loads the model's own.
        collator: makes batches of rows in place of the task's own; data of images may then have any columns.

    Returns:
        The pruned model in memory, and its folder if one was asked for.

    Raises:
        ValueError: something given is wrong; raised before any long work.
        InterruptedRunError: Ctrl-C; the state is saved and ``RunOptions(resume=True)`` goes on from it.
        TrainingDivergedError: gradients stayed NaN or Inf; the last good state is saved.
    """
    options = options or RunOptions()
    with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch:
        run_dir = options.run_dir or Path(scratch)
        job = prepare(
            model,
            dataset,
            config or PruningConfig(),
            training or {},
            lora,
            tokenizer,
            options,
            run_dir,
            image_processor=image_processor,
            collator=collator,
        )
        return _run(job, run_dir, callbacks)


def _run(job: TrainingJob, run_dir: Path, callbacks: Sequence[TrainerCallback]) -> PruneResult:
    started = time.time()
    if job.options.overwrite and job.checkpoint is None:
        # Only now that everything was checked: an interrupted run is worth something.
        shutil.rmtree(run_dir, ignore_errors=True)
    logger.info("Loading %s", job.name)
    model = job.load_model() if job.model is None else job.model
    dense = measure_dense(job, model)
    pruning = PruningCallback(job.pruning)
    if job.checkpoint is not None:
        logger.info("Going on from %s", job.checkpoint)
        pruning.restore_(model, job.checkpoint)
    # Trainers set special tokens and switch caches off; the result keeps the model's own.
    before = copy.deepcopy(model.config), copy.deepcopy(getattr(model, "generation_config", None))
    trainer = _trainer(job, model, pruning, callbacks)
    _train(trainer, pruning, job, run_dir)
    try:
        return _finish(job, trainer, pruning, dense, run_dir, before, started)
    except KeyboardInterrupt:
        saved = last_checkpoint(run_dir) if job.options.output else None
        how = f"training is done, and the same command with --resume goes on from {run_dir}" if saved else "start again"
        raise InterruptedRunError(f"Stopped before the result was written: {how}.") from None


def _finish(
    job: TrainingJob,
    trainer: Trainer,
    pruning: PruningCallback,
    dense: dict[str, Any],
    run_dir: Path,
    configs: tuple[Any, Any],
    started: float,
) -> PruneResult:
    """Merge, measure and save."""
    assert pruning.run is not None
    logger.info("Merging the adapter")
    adapter = _adapter_copy(trainer.model, pruning, job, run_dir)
    finished: Any = trainer.model
    _restore_config_(finished.get_base_model(), *configs)
    merged = finish(finished, pruning.run.structure, pruning.run.plan, dtype=job.stored_dtype)
    course = {
        "pruning": pruning.run.summary(),
        "history": pruning.history,
        "skipped_steps": pruning.skipped_steps,
        "data": dict(job.rows.prepared.facts),
    }
    metrics = measure_pruned(job, merged, dense, course, pruning.run.plan)
    metrics["seconds"] = time.time() - started
    record = run_record(job.name, job.task.name, run_settings(job), metrics, pruning.run.plan, job.options.command)
    report = report_data(record, pruning.run, job.task.measures, job.options.prompt, _notes(job, pruning))
    if job.options.output is not None:
        _save(job, merged, record, report, pruning.run.plan, adapter)
        if not job.options.keep_run:
            shutil.rmtree(run_dir, ignore_errors=True)
    return PruneResult(
        model=merged,
        tokenizer=job.tokenizer,
        plan=pruning.run.plan,
        structure=pruning.run.structure,
        metrics=metrics,
        report=report,
        output=job.options.output,
        image_processor=job.image_processor,
    )


def _restore_config_(base: Any, config: Any, generation_config: Any) -> None:
    """Take back what Trainers change in the configs."""
    for name in ("pad_token_id", "use_cache", "output_router_logits", "router_aux_loss_coef"):
        if hasattr(config, name):
            setattr(base.config, name, getattr(config, name))
    if generation_config is not None:
        base.generation_config = generation_config


def _trainer(
    job: TrainingJob, model: PreTrainedModel, pruning: PruningCallback, callbacks: Sequence[TrainerCallback]
) -> Trainer:
    from transformers import PrinterCallback

    trainer = job.task.trainer(job, model, callbacks)
    trainer.remove_callback(PrinterCallback)
    # First in line, so that what it adds to the logs reaches every other callback.
    trainer.callback_handler.callbacks.insert(0, pruning)
    return trainer


def _train(trainer: Trainer, pruning: PruningCallback, job: TrainingJob, run_dir: Path) -> None:
    """Train to the end, or raise when the user stops."""
    interrupt = StopOnInterrupt(pruning)
    trainer.add_callback(interrupt)
    logger.info("Training on %d %s", len(job.train_rows), job.task.row_name)
    stopped = False
    try:
        if job.checkpoint is not None and _training_is_over(job.checkpoint):
            _take_finished_adapter(trainer, pruning, job.checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    except KeyboardInterrupt:
        stopped = True
    finally:
        interrupt.release()
        saved = last_checkpoint(run_dir) if job.options.output else None
        if saved is None and run_dir.is_dir():
            shutil.rmtree(run_dir)
    if stopped or (interrupt.requested and trainer.state.global_step < trainer.state.max_steps):
        where = f"The state of step {_step_of(saved)} is saved in {run_dir}" if saved else "No state was saved yet"
        how = "the same command with --resume goes on from there" if saved else "start again"
        raise InterruptedRunError(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; nothing was written to the "
            f"output folder. {where}: {how}."
        )


def _training_is_over(checkpoint: Path) -> bool:
    """Whether the run was stopped after its last step: in measuring or saving."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def _take_finished_adapter(trainer: Trainer, pruning: PruningCallback, checkpoint: Path) -> None:
    """Load the last adapter: the Trainer itself would do one step too many."""
    assert pruning.run is not None
    assert trainer.model is not None
    pruning.run.begin(trainer.model, _step_of(checkpoint))
    trainer._load_from_checkpoint(str(checkpoint))
    pruning.run.end()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _adapter_copy(model: Any, pruning: PruningCallback, job: TrainingJob, run_dir: Path) -> Path | None:
    """Save the adapter before it is merged, where that was asked for."""
    if not (job.options.save_adapter and job.options.output):
        return None
    folder = run_dir / "adapter"
    model.save_pretrained(folder)
    assert pruning.run is not None
    save_file(refitted_weights(model, pruning.run), folder / "refitted_base_weights.safetensors")
    return folder


def _notes(job: TrainingJob, pruning: PruningCallback) -> tuple[str, ...]:
    """What a reader of the report has to know."""
    assert pruning.run is not None
    notes = []
    if abs(pruning.run.ratio - job.pruning.ratio) > NOTED_DEVIATION:
        multiple = pruning.run.legal_widths().channel_multiple
        widths = f"FFN widths are multiples of {multiple}, and head counts" if multiple > 1 else "head counts are"
        notes.append(
            f"The ratio is {pruning.run.ratio:.2%} rather than {job.pruning.ratio:.2%}: {widths} those that the "
            "config accepts."
        )
    if pruning.skipped_steps:
        steps = ", ".join(str(step) for step in pruning.skipped_steps)
        notes.append(f"Steps skipped because of NaN or Inf in the gradients: {steps}.")
    return tuple(notes)


def _save(
    job: TrainingJob,
    merged: PreTrainedModel,
    record: dict[str, Any],
    report: ReportData,
    plan: Plan,
    adapter: Path | None,
) -> None:
    from loraprune.report.html import write_report

    output = job.options.output
    assert output is not None
    logger.info("Writing %s", output)

    def extras(folder: Path) -> None:
        if job.options.report:
            write_report(report, folder / "report.html")
        if adapter is not None:
            shutil.copytree(adapter, folder / "adapter")
            (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")

    card = model_card(record, job.task, job.structure, runtimes_of(merged))
    save_checkpoint(output, merged, job.processor, record=record, card=card, extras=extras)
