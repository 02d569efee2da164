"""Measures of the dense and of the pruned model around a run."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from loraprune.evaluation.latency import forward_latency
from loraprune.evaluation.perplexity import Perplexity, perplexity
from loraprune.export import cast_
from loraprune.plan import Plan
from loraprune.recipes.loading import working_dtype
from loraprune.slicing import slice_
from loraprune.training.callback import PruningCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.recipes.preparing import Job

logger = logging.getLogger("loraprune")

LATENCY_TOKENS = 512


def measure_dense(job: Job, model: PreTrainedModel) -> dict[str, Any]:
    """Perplexity and completion of the model before anything is done to it."""
    measures: dict[str, Any] = {}
    if job.held_out is not None:
        logger.info("Measuring the dense model on %d held-out sequences", len(job.held_out.sequences))
        measures["perplexity"] = perplexity(model, job.held_out)
    if job.options.prompt:
        measures["completion"] = complete(model, job.tokenizer, job.options.prompt)
    return measures


def measure_pruned(
    job: Job, merged: PreTrainedModel, pruning: PruningCallback, dense: dict[str, Any]
) -> dict[str, Any]:
    """All measures of a finished run; ``dense`` is what :func:`measure_dense` gave."""
    assert pruning.run is not None
    itemsize = job.stored_dtype.itemsize
    metrics: dict[str, Any] = {
        "dense": {
            "parameters": job.structure.num_parameters,
            "bytes": job.structure.num_parameters * itemsize,
        },
        "pruned": {"parameters": merged.num_parameters(), "bytes": merged.num_parameters() * itemsize},
        "pruning": pruning.run.summary(),
        "history": pruning.history,
        "skipped_steps": pruning.skipped_steps,
        "data": {
            "format": job.data.format.value,
            "tokens": job.data.num_tokens,
            "trained_tokens": job.data.num_trained_tokens,
        },
    }
    cast_(merged, working_dtype(job.stored_dtype, job.device))
    if job.held_out is not None:
        logger.info("Measuring the pruned model")
        metrics["dense"] |= _perplexity_values(dense["perplexity"])
        metrics["pruned"] |= _perplexity_values(perplexity(merged, job.held_out))
    if job.options.prompt:
        metrics["dense"]["completion"] = dense["completion"]
        metrics["pruned"]["completion"] = complete(merged, job.tokenizer, job.options.prompt)
    if job.options.unrecovered and job.model is None:
        metrics["unrecovered"] = _measure_unrecovered(job, pruning.run.plan)
    if job.options.latency:
        metrics |= _latency(job, merged, metrics)
    cast_(merged, job.stored_dtype)
    return metrics


def _measure_unrecovered(job: Job, plan: Plan) -> dict[str, Any]:
    """The original model with the same groups cut out and nothing else done: what tuning and refit are worth."""
    logger.info("Measuring the same cut without recovery")
    model = job.load_model()
    slice_(model, job.structure, Plan.full(job.structure), plan)
    measures: dict[str, Any] = {"parameters": model.num_parameters()}
    measures["bytes"] = measures["parameters"] * job.stored_dtype.itemsize
    if job.held_out is not None:
        measures |= _perplexity_values(perplexity(model, job.held_out))
    if job.options.prompt:
        measures["completion"] = complete(model, job.tokenizer, job.options.prompt)
    return measures


def _perplexity_values(measured: Perplexity) -> dict[str, Any]:
    return {key: value for key, value in asdict(measured).items() if value is not None}


def _latency(job: Job, pruned: PreTrainedModel, metrics: dict[str, Any]) -> dict[str, Any]:
    """Time dense and pruned in turns; the dense one has the shapes of the original and random weights."""
    from transformers import AutoModelForCausalLM

    context = getattr(job.config, "max_position_embeddings", None) or LATENCY_TOKENS
    tokens = min(LATENCY_TOKENS, context)
    try:
        with torch.random.fork_rng(), torch.device(job.device):
            dense = AutoModelForCausalLM.from_config(job.config, dtype=pruned.dtype)
        seconds = forward_latency({"dense": dense, "pruned": pruned}, tokens=tokens)
    except (torch.OutOfMemoryError, ValueError) as error:
        logger.info("Latency is not measured: %s", str(error).splitlines()[0])
        return {}
    return {
        "dense": {**metrics["dense"], "latency_ms": seconds["dense"] * 1000, "latency_tokens": tokens},
        "pruned": {**metrics["pruned"], "latency_ms": seconds["pruned"] * 1000, "latency_tokens": tokens},
    }


@torch.no_grad()
def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int = 64) -> str:
    """Go on from a prompt greedily; the prompt is not repeated."""
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=True).to(next(model.parameters()).device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generator: Any = model
    output = generator.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        repetition_penalty=1.2,
    )
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text)
