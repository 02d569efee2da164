"""Measures of the dense and of the pruned model around a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import checkpoint_dtype, random_model, working_dtype
from loraprune.layers.quantized import stored_bytes
from loraprune.measure.benchmark.inference import call_latency
from loraprune.measure.benchmark.memory import free_memory
from loraprune.metrics.completions import Writing, complete_prompts
from loraprune.structure.plan import Plan
from loraprune.surgery.merging import cast_
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.recipes.steps.prepared import PreparedRun

logger = logging.getLogger("loraprune")

SHARE_OF_FREE_MEMORY = 0.8


def measure_dense(prepared: PreparedRun, model: PreTrainedModel) -> dict[str, Any]:
    """Quality and completion of the model before anything is done to it."""
    if prepared.held_out is not None:
        logger.info(
            "Measuring the %s model on %d held-out %s",
            prepared.called[0],
            len(prepared.held_out),
            prepared.task.row_name,
        )
    return _quality(prepared, model)


def _quality(prepared: PreparedRun, model: PreTrainedModel) -> dict[str, Any]:
    """What can be measured on held-out rows and seen in a completion, where that is asked for."""
    measures = {} if prepared.held_out is None else prepared.task.quality(model, prepared.held_out, prepared.processor)
    if prepared.options.prompt:
        measures["completion"] = complete(model, prepared.tokenizer, prepared.options.prompt)
    return measures


@contextmanager
def in_place_to_measure(prepared: PreparedRun, model: PreTrainedModel) -> Iterator[bool]:
    """Bring the whole model to what computes, where there is room for it, and back again."""
    if prepared.computing == prepared.device:
        yield True
        return
    needed = model.num_parameters() * model.dtype.itemsize
    if needed * 1.2 > free_memory(prepared.computing):
        logger.info("The model is too large to be measured on %s.", prepared.computing)
        yield False
        return
    model.to(prepared.computing)  # type: ignore[arg-type]
    try:
        yield True
    finally:
        model.to(prepared.device)  # type: ignore[arg-type]


def measure_pruned(
    prepared: PreparedRun,
    merged: PreTrainedModel,
    dense: dict[str, Any],
    course: dict[str, Any],
    plan: Plan | None = None,
    *,
    sizes_only: bool = False,
) -> dict[str, Any]:
    """All measures of a finished run.

    Args:
        prepared: that was done.
        merged: the result.
        dense: what :func:`measure_dense` gave.
        course: what else there is to tell of the run; goes into the measures as it is.
        plan: groups that stayed; None where none went.
        sizes_only: the model is too large to be run.
    """
    itemsize = prepared.stored_dtype.itemsize
    before = checkpoint_dtype(prepared.config).itemsize if prepared.options.dtype else itemsize
    metrics: dict[str, Any] = {
        "dense": {
            "parameters": prepared.structure.num_parameters,
            "bytes": prepared.structure.num_parameters * before,
            **dense,
        },
        "pruned": {"parameters": merged.num_parameters(), "bytes": stored_bytes(merged, itemsize)},
        **course,
    }
    if sizes_only:
        return metrics
    for measure in (_in_working_dtype, _final_quality, _unrecovered_quality, _latency):
        try:
            measure(prepared, merged, plan, metrics)
        except (RuntimeError, MemoryError, ValueError) as error:
            # The run is done: for want of memory, say, one measure is missing, and not the result.
            logger.warning("warning: a measure is left out: %s", str(error).splitlines()[0] if str(error) else error)
    cast_(merged, prepared.stored_dtype)
    return metrics


def _in_working_dtype(
    prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]
) -> None:
    """Measure in the dtype that the dense model was measured in."""
    cast_(merged, working_dtype(prepared.stored_dtype, prepared.computing))


def _final_quality(prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """Quality and completion of the result, beside those of the dense model."""
    if prepared.held_out is not None:
        logger.info("Measuring the %s model", prepared.called[1])
    metrics["pruned"] |= _quality(prepared, merged)


def _unrecovered_quality(
    prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]
) -> None:
    """The original model with the same groups cut out and nothing else done: what tuning and refit are worth."""
    if plan is None or not prepared.options.unrecovered or prepared.model is not None:
        return
    logger.info("Measuring the same cut without recovery")
    model: Any = prepared.load_model().to(prepared.computing)  # type: ignore[arg-type]
    slice_(model, prepared.structure, Plan.full(prepared.structure), plan)
    measures: dict[str, Any] = {"parameters": model.num_parameters()}
    measures["bytes"] = measures["parameters"] * prepared.stored_dtype.itemsize
    metrics["unrecovered"] = measures | _quality(prepared, model)


def _latency(prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: dict[str, Any]) -> None:
    """Time dense and pruned in turns; the dense one has the shapes of the original and random weights."""
    if not prepared.options.latency:
        return
    needed = prepared.structure.num_parameters * merged.dtype.itemsize
    if needed > SHARE_OF_FREE_MEMORY * free_memory(prepared.computing):
        logger.info("Latency is not measured: there is no room for a second, dense model.")
        return
    workload = prepared.task.workload(prepared.train_rows, context=prepared.context, collator=prepared.collator)
    with torch.random.fork_rng(), torch.device(prepared.computing):
        original = random_model(prepared.config, prepared.task.auto_class, merged.dtype)
    seconds = call_latency({"dense": original, "pruned": merged}, workload.inputs)
    for name, value in seconds.items():
        metrics[name] |= {"latency_ms": value * 1000, **workload.facts}


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str, max_new_tokens: int = 64
) -> str:
    """Go on from a prompt greedily, without repeating it; an encoder–decoder model writes its target for it."""
    assert tokenizer is not None
    writing = Writing(max_new_tokens=max_new_tokens, repetition_penalty=1.2)
    return complete_prompts(model, tokenizer, [prompt], writing)[0]
