"""The joint recipe: prune a model while LoRA tunes it, and hand back an ordinary checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from loraprune.export import finish, save_checkpoint
from loraprune.interruption import InterruptedRunError
from loraprune.plan import Plan
from loraprune.recipes.card import model_card
from loraprune.recipes.interrupt import StopOnInterrupt
from loraprune.recipes.loading import give_pad_token_
from loraprune.recipes.lora import LoraOptions
from loraprune.recipes.measuring import measure_dense, measure_pruned
from loraprune.recipes.options import RunOptions
from loraprune.recipes.preparing import Job, prepare
from loraprune.recipes.record import run_record
from loraprune.recipes.reporting import report_data
from loraprune.report.data import ReportData
from loraprune.structure import Structure
from loraprune.training.callback import PruningCallback
from loraprune.training.config import PruningConfig
from loraprune.training.state import last_checkpoint, refitted_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer

logger = logging.getLogger("loraprune")

NOTED_DEVIATION = 0.002


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What a run gives back.

    Attributes:
        model: merged and ready to use.
        tokenizer: of the model.
        plan: which groups stayed.
        structure: of the model before pruning.
        metrics: measures of the dense and of the pruned model, and the course of the run, as plain values.
        report: the same as the report shows it.
        output: folder of the checkpoint, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    structure: Structure
    metrics: dict[str, Any] = field(repr=False)
    report: ReportData = field(repr=False)
    output: Path | None = None


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
) -> PruneResult:
    """Prune a model while LoRA tunes it.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        dataset: a file, a hub data set's name, or a loaded data set (columns: text, prompt and completion,
            instruction and output, or messages).
        config: what to prune; the default halves the prunable parameters.
        training: fields of trl's SFTConfig, by name.
        lora: our options or peft's configuration; the default is the paper's (r 8, alpha 16, all projections).
        tokenizer: of the model; None loads it from the checkpoint.
        options: where the result goes, what is measured, and so on.
        callbacks: further callbacks of the Trainer.

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
        job = prepare(model, dataset, config or PruningConfig(), training or {}, lora, tokenizer, options, run_dir)
        return _run(job, run_dir, callbacks)


def _run(job: Job, run_dir: Path, callbacks: Sequence[TrainerCallback]) -> PruneResult:
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
    # trl sets special tokens while it trains; the result keeps the model's own.
    config_before, generation_before = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    trainer = _trainer(job, model, pruning, callbacks)
    _train(trainer, pruning, job, run_dir)
    try:
        return _finish(job, trainer, pruning, dense, run_dir, (config_before, generation_before), started)
    except KeyboardInterrupt:
        saved = last_checkpoint(run_dir) if job.options.output else None
        how = f"training is done, and the same command with --resume goes on from {run_dir}" if saved else "start again"
        raise InterruptedRunError(f"Stopped before the result was written: {how}.") from None


def _finish(
    job: Job,
    trainer: SFTTrainer,
    pruning: PruningCallback,
    dense: dict[str, Any],
    run_dir: Path,
    configs: tuple[Any, Any],
    started: float,
) -> PruneResult:
    """Merge, measure and save."""
    assert pruning.run is not None
    config_before, generation_before = configs
    logger.info("Merging the adapter")
    adapter = _adapter_copy(trainer.model, pruning, job, run_dir)
    finished: Any = trainer.model
    base = finished.get_base_model()
    base.config.pad_token_id = config_before.pad_token_id
    base.config.use_cache = config_before.use_cache
    base.generation_config = generation_before
    merged = finish(finished, pruning.run.structure, pruning.run.plan, dtype=job.stored_dtype)
    metrics = measure_pruned(job, merged, pruning, dense)
    metrics["seconds"] = time.time() - started
    record = run_record(job.name, _settings(job), metrics, pruning.run.plan, job.options.command)
    report = report_data(record, pruning.run, job.options.prompt, _notes(job, pruning))
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
    )


def _trainer(
    job: Job, model: PreTrainedModel, pruning: PruningCallback, callbacks: Sequence[TrainerCallback]
) -> SFTTrainer:
    from transformers import PrinterCallback
    from trl import SFTTrainer

    tokenizer = copy.deepcopy(job.tokenizer)
    give_pad_token_(tokenizer)
    trainer = SFTTrainer(
        model=model,
        args=job.arguments,
        train_dataset=job.train_rows,
        processing_class=tokenizer,
        peft_config=job.lora,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    # First in line, so that what it adds to the logs reaches every other callback.
    trainer.callback_handler.callbacks.insert(0, pruning)
    return trainer


def _train(trainer: SFTTrainer, pruning: PruningCallback, job: Job, run_dir: Path) -> None:
    """Train to the end, or raise when the user stops."""
    interrupt = StopOnInterrupt(pruning)
    trainer.add_callback(interrupt)
    logger.info("Training on %d sequences", len(job.train_rows))
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


def _take_finished_adapter(trainer: SFTTrainer, pruning: PruningCallback, checkpoint: Path) -> None:
    """Load the last adapter: the Trainer itself would do one step too many."""
    assert pruning.run is not None
    assert trainer.model is not None
    pruning.run.begin(trainer.model, _step_of(checkpoint))
    trainer._load_from_checkpoint(str(checkpoint))
    pruning.run.end()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _adapter_copy(model: Any, pruning: PruningCallback, job: Job, run_dir: Path) -> Path | None:
    """Save the adapter before it is merged, where that was asked for."""
    if not (job.options.save_adapter and job.options.output):
        return None
    folder = run_dir / "adapter"
    model.save_pretrained(folder)
    assert pruning.run is not None
    save_file(refitted_weights(model, pruning.run), folder / "refitted_base_weights.safetensors")
    return folder


def _settings(job: Job) -> dict[str, Any]:
    return {
        "pruning": asdict(job.pruning),
        "lora": {
            "r": job.lora.r,
            "alpha": job.lora.lora_alpha,
            "dropout": job.lora.lora_dropout,
            "target_modules": _targets(job.lora),
        },
        "training": training_settings(job.arguments),
    }


def _targets(lora: LoraConfig) -> list[str] | str:
    targets = lora.target_modules or []
    return targets if isinstance(targets, str) else sorted(targets)


def _notes(job: Job, pruning: PruningCallback) -> tuple[str, ...]:
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
    job: Job, merged: PreTrainedModel, record: dict[str, Any], report: ReportData, plan: Plan, adapter: Path | None
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

    save_checkpoint(output, merged, job.tokenizer, record=record, card=model_card(record), extras=extras)


def training_settings(arguments: SFTConfig) -> dict[str, Any]:
    """The training arguments that shape the result."""
    names = (
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "max_length",
        "bf16",
        "gradient_checkpointing",
        "seed",
    )
    return {name: _plain(getattr(arguments, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(getattr(value, "value", value))
