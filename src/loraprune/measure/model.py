"""Models to measure, in memory: plain and ragged checkpoints, sparse and quantized ones, and adapters on their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.adapter import with_adapter
from loraprune.checkpoint.load import default_device, load_model
from loraprune.tasks.source import MeasurableModel, check_measurable
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model in memory, ready to be measured.

    Attributes:
        name: as it was given.
        model: in evaluation mode.
        tokenizer: of a model that reads text, else None; ``image_processor``: of one that reads images, if it has one.
        task: that it is made for.
        base: checkpoint under an adapter, or None.
        fingerprint: a hash of what the model is.
        dtype: that it computes in; ``device``: that it is on.
        context: tokens that it can read at most, or None.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: Any
    task: Task
    base: str | None
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    context: int | None = None


def load_measured(
    name: str | Path | MeasurableModel,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    merge: bool = True,
    trust_remote_code: bool = False,
    revision: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    known_fingerprint: str | None = None,
) -> MeasuredModel:
    """Load a model to measure it.

    Args:
        name: a checkpoint's folder or hub name, those of an adapter, or what :func:`check_measurable` made of one.
        dtype: to compute in (a name such as ``"bfloat16"`` will do); None is the checkpoint's own, and 32 bits on a
            CPU. Weights that are quantized stay so.
        device: None is the first accelerator, or the CPU.
        merge: merge an adapter into its base; otherwise the model is peft's around it.
        trust_remote_code: run code that the checkpoint brings.
        revision: of a hub name.
        tokenizer: checkpoint to take the tokenizer from, as for :func:`check_measurable`.
        base: of an adapter, in place of the one that it names.
        known_fingerprint: of the model, where it has been computed already.

    Raises:
        CheckpointError: as :func:`check_measurable`; weights are missing or broken; an adapter does not fit its base.
    """
    found = (
        name
        if isinstance(name, MeasurableModel)
        else check_measurable(
            name, trust_remote_code=trust_remote_code, revision=revision, tokenizer=tokenizer, base=base
        )
    )
    place = default_device() if device is None else torch.device(device)
    working = found.dtype(dtype, place)
    model: Any = load_model(
        found.source,
        working,
        place,
        auto_class=found.auto_class,
        trust_remote_code=found.trust_remote_code,
        revision=found.source_revision,
        quantized=bool(getattr(found.config, "quantization_config", None)),
    )
    if found.adapter is not None:
        # Merging brings what was quantized to the memory of the CPU.
        model = with_adapter(model, found.adapter, found.name, merge=merge, dtype=working)
        model = model.to(place) if merge else model
    return MeasuredModel(
        name=found.name,
        model=model.eval(),
        tokenizer=found.tokenizer,
        image_processor=found.image_processor,
        task=found.task,
        base=None if found.adapter is None else found.adapter.base,
        fingerprint=known_fingerprint or found.fingerprint(),
        dtype=working,
        device=place,
        context=found.context,
    )


def named_device(name: str | None) -> torch.device:
    """A device by its name, or the first accelerator, or the CPU.

    Raises:
        ValueError: this machine or this torch has no such device.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"There is no device {name!r} here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise ValueError("The device 'meta' computes nothing. Use cpu, or an accelerator such as cuda:0.")
    return device
