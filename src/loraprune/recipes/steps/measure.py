"""Measures of the dense and the pruned model, before and after a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import random_model, working_dtype
from loraprune.layers.quantized import stored_bytes
from loraprune.measure.benchmark.inference import call_latency
from loraprune.measure.benchmark.memory import free_memory
from loraprune.measure.width_times import work_latency
from loraprune.metrics.completions import Writing, complete_prompts
from loraprune.metrics.fingerprint import DataFingerprint
from loraprune.processes.ranks import on_any
from loraprune.processes.shared_work import together
from loraprune.record.numbers import counted
from loraprune.record.run_record import ModelMeasures, RunMetrics
from loraprune.structure.plan import Plan
from loraprune.surgery.merging import cast_
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.recipes.steps.prepared import PreparedRun

logger = logging.getLogger("loraprune")

SHARE_OF_FREE_MEMORY = 0.8


def measure_dense(prepared: PreparedRun, model: PreTrainedModel) -> ModelMeasures:
    """Measure quality and completion of the model before the run."""
    if prepared.held_out is not None:
        logger.info(
            "Measuring the %s model on %s",
            prepared.called[0],
            counted(len(prepared.held_out), f"held-out {prepared.task.row_name}"),
        )
    return _quality(prepared, model)


def _quality(prepared: PreparedRun, model: PreTrainedModel) -> ModelMeasures:
    """Measure on held-out rows and complete the prompt, if there are any."""
    found: dict[str, Any] = {}
    if prepared.held_out is not None:
        data = DataFingerprint(prepared.held_out)
        found = prepared.task.quality(model, data.held_out, prepared.processor)
        found["data_fingerprint"] = data.value
    if prepared.options.prompt:
        found["completion"] = complete(model, prepared.tokenizer, prepared.options.prompt)
    return ModelMeasures(**found)


@contextmanager
def in_place_to_measure(prepared: PreparedRun, model: PreTrainedModel) -> Iterator[bool]:
    """Move the whole model to the computing device for a ``with`` block; yield whether it fits."""
    if prepared.computing == prepared.device:
        yield True
        return
    needed = model.num_parameters() * model.dtype.itemsize
    if on_any(needed * 1.2 > free_memory(prepared.computing)):  # measuring is shared: all do it, or none
        logger.info("The model is too large to measure on %s.", prepared.computing)
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
    dense: ModelMeasures,
    plan: Plan | None = None,
    *,
    sizes_only: bool = False,
) -> RunMetrics:
    """Return all measures of a finished run.

    Args:
        prepared: the run.
        merged: the result.
        dense: output of :func:`measure_dense`.
        plan: remaining groups; None if no groups were removed.
        sizes_only: measure only sizes, because the model is too large to run.
    """
    total = prepared.structure.num_parameters
    metrics = RunMetrics(
        dense=replace(dense, parameters=total, bytes=total * prepared.source.stored_dtype.itemsize),
        pruned=ModelMeasures(
            parameters=merged.num_parameters(), bytes=stored_bytes(merged, prepared.saved_dtype.itemsize)
        ),
    )
    if sizes_only:
        return metrics
    for measure in (_in_working_dtype, _final_quality, _unrecovered_quality, _latency):
        try:
            found = partial(measure, prepared, merged, plan, metrics)
            # With sharded weights, a failed process must end the others, which would wait for it in a gather.
            metrics = found() if prepared.options.sharded else together(found)
        except (RuntimeError, MemoryError, ValueError) as error:
            if prepared.options.sharded:
                raise
            # The run is done: a failed measure, for example for lack of memory, must not cost the result.
            logger.warning("warning: a measure is left out: %s", str(error).splitlines()[0] if str(error) else error)
    cast_(merged, prepared.saved_dtype)
    return metrics


def _in_working_dtype(
    prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: RunMetrics
) -> RunMetrics:
    """Cast the result to the dtype in which the dense model was measured."""
    cast_(merged, working_dtype(prepared.saved_dtype, prepared.computing))
    return metrics


def _final_quality(
    prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: RunMetrics
) -> RunMetrics:
    """Measure quality and completion of the result."""
    if prepared.held_out is not None:
        logger.info("Measuring the %s model", prepared.called[1])
    size = metrics.pruned
    return replace(metrics, pruned=replace(_quality(prepared, merged), parameters=size.parameters, bytes=size.bytes))


def _unrecovered_quality(
    prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: RunMetrics
) -> RunMetrics:
    """Measure the original model with the same groups cut out, without repair and tuning."""
    if plan is None or not prepared.options.unrecovered or prepared.source.loaded is not None:
        return metrics
    logger.info("Measuring the same cut without recovery")
    model: Any = prepared.load_model().to(prepared.computing)  # type: ignore[arg-type]
    slice_(model, prepared.structure, Plan.full(prepared.structure), plan)
    size = model.num_parameters()
    stored = size * prepared.saved_dtype.itemsize
    return replace(metrics, unrecovered=replace(_quality(prepared, model), parameters=size, bytes=stored))


def _latency(prepared: PreparedRun, merged: PreTrainedModel, plan: Plan | None, metrics: RunMetrics) -> RunMetrics:
    """Time the dense and the pruned model in turns; the dense one has random weights."""
    if not prepared.options.latency:
        return metrics
    needed = prepared.structure.num_parameters * merged.dtype.itemsize
    if needed > SHARE_OF_FREE_MEMORY * free_memory(prepared.computing):
        logger.info("Latency is not measured: there is not enough memory for the dense model as well.")
        return metrics
    with torch.random.fork_rng(), torch.device(prepared.computing):
        original = random_model(prepared.source.config, prepared.task.auto_class, merged.dtype)
    models = {"dense": original, "pruned": merged}
    facts: Mapping[str, Any]
    if prepared.goal is not None:
        seconds, facts = work_latency(models, prepared.goal.work), {"latency_input": prepared.goal.times.work}
    else:
        rows, context = prepared.train_rows, prepared.source.context
        workload = prepared.task.workload(rows, context=context, collator=prepared.collator)
        seconds, facts = call_latency(models, workload.inputs), workload.facts
    dense, pruned = (
        replace(getattr(metrics, name), latency_ms=seconds[name] * 1000, **facts) for name in ("dense", "pruned")
    )
    return replace(metrics, dense=dense, pruned=pruned)


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str, max_new_tokens: int = 64
) -> str:
    """Continue a prompt greedily and return the new text; an encoder–decoder model writes its target."""
    assert tokenizer is not None
    writing = Writing(max_new_tokens=max_new_tokens, repetition_penalty=1.2)
    return complete_prompts(model, tokenizer, [prompt], writing)[0]
