"""Measures of the dense and of the pruned model around a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import random_model, working_dtype
from loraprune.layers.quantized import stored_bytes
from loraprune.measure.benchmark.inference import call_latency
from loraprune.metrics.completions import Writing, complete_prompts
from loraprune.structure.plan import Plan
from loraprune.surgery.merging import cast_
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.recipes.steps.job import Job

logger = logging.getLogger("loraprune")

SHARE_OF_FREE_MEMORY = 0.8


def measure_dense(job: Job, model: PreTrainedModel) -> dict[str, Any]:
    """Quality and completion of the model before anything is done to it."""
    if job.held_out is not None:
        logger.info("Measuring the %s model on %d held-out %s", job.called[0], len(job.held_out), job.task.row_name)
    return _quality(job, model)


def _quality(job: Job, model: PreTrainedModel) -> dict[str, Any]:
    """What can be measured on held-out rows and seen in a completion, where that is asked for."""
    measures = {} if job.held_out is None else job.task.quality(model, job)
    if job.options.prompt:
        measures["completion"] = complete(model, job.tokenizer, job.options.prompt)
    return measures


@contextmanager
def in_place_to_measure(job: Job, model: PreTrainedModel) -> Iterator[bool]:
    """Bring the whole model to what computes, where there is room for it, and back again."""
    if job.computing == job.device:
        yield True
        return
    needed = model.num_parameters() * model.dtype.itemsize
    if needed * 1.2 > free_memory(job.computing):
        logger.info("The model is too large to be measured on %s.", job.computing)
        yield False
        return
    model.to(job.computing)  # type: ignore[arg-type]
    try:
        yield True
    finally:
        model.to(job.device)  # type: ignore[arg-type]


def measure_pruned(
    job: Job,
    merged: PreTrainedModel,
    dense: dict[str, Any],
    course: dict[str, Any],
    plan: Plan | None = None,
    *,
    sizes_only: bool = False,
) -> dict[str, Any]:
    """All measures of a finished run.

    Args:
        job: that was done.
        merged: the result.
        dense: what :func:`measure_dense` gave.
        course: what else there is to tell of the run; goes into the measures as it is.
        plan: groups that stayed; None where none went.
        sizes_only: the model is too large to be run.
    """
    itemsize = job.stored_dtype.itemsize
    metrics: dict[str, Any] = {
        "dense": {
            "parameters": job.structure.num_parameters,
            "bytes": job.structure.num_parameters * itemsize,
            **dense,
        },
        "pruned": {"parameters": merged.num_parameters(), "bytes": stored_bytes(merged, itemsize)},
        **course,
    }
    if sizes_only:
        return metrics
    for measure in (_in_working_dtype, _final_quality, _unrecovered_quality, _latency):
        try:
            measure(job, merged, plan, metrics)
        except (RuntimeError, MemoryError, ValueError) as error:
            # The run is done: for want of memory, say, one measure is missing, and not the result.
            logger.warning("warning: a measure is left out: %s", str(error).splitlines()[0] if str(error) else error)
    cast_(merged, job.stored_dtype)
    return metrics


def _in_working_dtype(job: Job, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """Measure in the dtype that the dense model was measured in."""
    cast_(merged, working_dtype(job.stored_dtype, job.computing))


def _final_quality(job: Job, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """Quality and completion of the result, beside those of the dense model."""
    if job.held_out is not None:
        logger.info("Measuring the %s model", job.called[1])
    metrics["pruned"] |= _quality(job, merged)


def _unrecovered_quality(job: Job, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """The original model with the same groups cut out and nothing else done: what tuning and refit are worth."""
    if plan is None or not job.options.unrecovered or job.model is not None:
        return
    logger.info("Measuring the same cut without recovery")
    model: Any = job.load_model().to(job.computing)  # type: ignore[arg-type]
    slice_(model, job.structure, Plan.full(job.structure), plan)
    measures: dict[str, Any] = {"parameters": model.num_parameters()}
    measures["bytes"] = measures["parameters"] * job.stored_dtype.itemsize
    metrics["unrecovered"] = measures | _quality(job, model)


def _latency(job: Job, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """Time dense and pruned in turns; the dense one has the shapes of the original and random weights."""
    if not job.options.latency:
        return
    needed = job.structure.num_parameters * merged.dtype.itemsize
    if needed > SHARE_OF_FREE_MEMORY * free_memory(job.computing):
        logger.info("Latency is not measured: there is no room for a second, dense model.")
        return
    workload = job.task.workload(job)
    with torch.random.fork_rng(), torch.device(job.computing):
        original = random_model(job.config, job.task.auto_class, merged.dtype)
    seconds = call_latency({"dense": original, "pruned": merged}, workload.inputs)
    for name, value in seconds.items():
        metrics[name] |= {"latency_ms": value * 1000, **workload.facts}


def free_memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator, or in the machine."""
    if device.type == "cuda":
        # What torch keeps for later counts as used there.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str, max_new_tokens: int = 64
) -> str:
    """Go on from a prompt greedily, without repeating it; an encoder–decoder model writes its target for it."""
    assert tokenizer is not None
    writing = Writing(max_new_tokens=max_new_tokens, repetition_penalty=1.2)
    return complete_prompts(model, tokenizer, [prompt], writing)[0]
