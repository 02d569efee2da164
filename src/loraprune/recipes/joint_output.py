"""What a run of the joint recipe leaves behind: report and notes, the adapter, and the folder of the result."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from loraprune.checkpoint.adapter import COURSE_FILE, MASKS_FILE, REFITTED_FILE, course_text
from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.checkpoint.save import save_checkpoint
from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.phases import WRITING
from loraprune.pruning.pst import PstRun
from loraprune.pruning.resume import refitted_weights
from loraprune.recipes.steps.check import TrainingJob
from loraprune.recipes.steps.quantized import quantization_notes
from loraprune.recipes.steps.zeros import filling_note
from loraprune.record.report_data import ReportData
from loraprune.report.card import model_card
from loraprune.report.from_record import importance_of, report_of, shown_measures
from loraprune.report.page_of_run import write_page
from loraprune.report.pst_card import pst_card
from loraprune.report.recovery_card import recovery_card
from loraprune.sparsity.zeros import Zeros
from loraprune.tasks.event_files import copy_event_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("loraprune")

NOTED_DEVIATION = 0.002


def adapter_copy(model: Any, pruning: PruningCallback, job: TrainingJob, run_dir: Path) -> Path | None:
    """Save the adapter before it is merged, where that was asked for."""
    if not (job.options.save_adapter and job.options.output):
        return None
    folder = run_dir / "adapter"
    model.save_pretrained(folder)
    assert pruning.run is not None
    course = course_text(keeps_zeros=bool(job.keep_zeros))
    if isinstance(pruning.run, PstRun):
        save_file(pruning.run.masks(), folder / MASKS_FILE)
    elif not job.recovery:
        save_file(refitted_weights(model, pruning.run), folder / REFITTED_FILE)
        course = course_text(
            plan=pruning.run.plan, dimensions=job.pruning.dimensions, keep_layers=job.pruning.keep_layers
        )
    (folder / COURSE_FILE).write_text(course, encoding="utf-8")
    return folder


def joint_report(job: TrainingJob, record: dict[str, Any], pruning: PruningCallback, zeros: Zeros) -> ReportData:
    """The report of a run; ``zeros`` are those of the model before it."""
    assert pruning.run is not None
    measures, notes = shown_measures(job.task.measures, record["metrics"]), _notes(job, pruning, zeros)
    importance = importance_of(pruning.run.structure, pruning.run.plan, pruning.run.importance)
    return report_of(record, measures, importance=importance, prompt=job.options.prompt, notes=notes)


def _notes(job: TrainingJob, pruning: PruningCallback, zeros: Zeros) -> tuple[str, ...]:
    """What a reader of the report has to know."""
    assert pruning.run is not None
    notes = [*quantization_notes(job)]
    if zeros.are_sparsity and not job.keep_zeros and not job.unstructured:
        notes.append(filling_note(job, zeros))
    if not job.unstructured and abs(pruning.run.ratio - job.pruning.ratio) > NOTED_DEVIATION:
        multiple = pruning.run.legal_widths().channel_multiple
        widths = f"FFN widths are multiples of {multiple}, and head counts" if multiple > 1 else "head counts are"
        why = f"{widths} those that the config accepts"
        if job.structure.spans_blocks:
            why = "blocks go as a whole" if "blocks" in job.structure.kinds else "the hidden size is rounded"
        notes.append(f"The ratio is {pruning.run.ratio:.2%} rather than {job.pruning.ratio:.2%}: {why}.")
    if pruning.skipped_steps:
        steps = ", ".join(str(step) for step in pruning.skipped_steps)
        notes.append(f"Steps skipped because of NaN or Inf in the gradients: {steps}.")
    return tuple(notes)


def save(
    job: TrainingJob,
    merged: PreTrainedModel,
    record: dict[str, Any],
    report: ReportData,
    pruning: PruningCallback,
    adapter: Path | None,
    run_dir: Path,
) -> ReportData:
    """Write everything; record and report are told how long the weights took. Returns the report as written."""
    output = job.options.output
    assert output is not None
    assert pruning.run is not None
    plan = pruning.run.plan
    logger.info("Writing %s", output)
    pruning.phases.begin()

    def extras(folder: Path) -> None:
        nonlocal report
        pruning.phases.lap(WRITING)
        record["metrics"]["phases"] = dict(pruning.phases.seconds)
        report = replace(report, phases=record["metrics"]["phases"])
        if job.options.report:
            write_page(report, folder, output)
        copy_event_files(run_dir, folder)
        if adapter is not None:
            shutil.copytree(adapter, folder / "adapter")
        if adapter is not None and not job.recovery and not job.unstructured:
            (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")

    runtimes = runtimes_of(merged)
    if job.unstructured:
        card = pst_card(record, job.task, runtimes)
    elif job.recovery:
        card = recovery_card(record, job.task, runtimes)
    else:
        card = model_card(record, job.task, job.structure, runtimes)
    save_checkpoint(output, merged, job.processor, record=record, card=card, extras=extras)
    return report
