"""Checks of a model to measure, before its weights are loaded, and the dtype and device of the measurement."""

from __future__ import annotations

import torch

from loraprune.checkpoint.load import DTYPES, CheckpointError, default_device
from loraprune.checkpoint.source import ModelSource
from loraprune.processes.ranks import launched
from loraprune.tasks.registry import TaskError, task_of_source


def check_measurable(source: ModelSource, *, needs_tokenizer: bool = True) -> ModelSource:
    """Check that a model can be measured, without loading its weights, and return its source.

    Args:
        source: source of the model; adapters, quantized models and unknown families are allowed.
        needs_tokenizer: whether a model that reads text must have one; speed can be measured without.

    Raises:
        CheckpointError: the tokenizer does not fit, or the model's task cannot be measured.
    """
    try:
        task = task_of_source(source)
    except (TaskError, ValueError) as error:
        raise CheckpointError(f"{source.checkpoint} cannot be measured: {error}") from error
    source.check_weights()
    given = source.given_tokenizer is not None
    if task.has_tokenizer and (needs_tokenizer or given):
        _check_vocabulary(source)
    elif given:
        raise CheckpointError(
            f"You passed a tokenizer, and {source.name} ({task.name}) reads no text. Leave --tokenizer out."
        )
    return source


def _check_vocabulary(source: ModelSource) -> None:
    """Check that the model has an embedding for every token, except those added to a tokenizer later.

    Raises:
        CheckpointError: a token has no embedding.
    """
    known, tokenizer = source.vocabulary, source.tokenizer
    if known is not None and tokenizer.vocab_size > known:
        raise CheckpointError(
            f"The tokenizer of {source.given_tokenizer or source.name} does not fit the model: it has "
            f"{tokenizer.vocab_size:,} tokens, and the model knows {known:,}. Name the right one with --tokenizer."
        )


def measuring_dtype(source: ModelSource, asked: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """Return the dtype to measure in: the requested one (by a name such as ``"bfloat16"``), or the checkpoint's own.

    On a CPU, the default is 32 bits.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(asked, str):
        if asked not in DTYPES:
            raise ValueError(f"dtype is {asked!r}; choose one of {', '.join(DTYPES)}.")
        return DTYPES[asked]
    # Training avoids float16 on old accelerators, but a forward pass is safe.
    keeps = source.stored_dtype == torch.float16 and device.type != "cpu"
    return asked or (source.stored_dtype if keeps else source.working_dtype(device))


def named_device(name: str | None) -> torch.device:
    """Return a device by name, or the first accelerator, or the CPU. One of several processes gets its own accelerator.

    Raises:
        ValueError: this machine or this torch has no such device, or several processes would share it.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"There is no device {name!r} here: {str(error).splitlines()[0]}") from error
    if ":" in name and launched() > 1:
        raise ValueError(
            f"--device {name} is one device, and each of the {launched()} processes takes its own. Leave it out, or "
            f"say --device {device.type}."
        )
    if device.type == "meta":
        raise ValueError("The device 'meta' computes nothing. Use cpu, or an accelerator such as cuda:0.")
    return device
