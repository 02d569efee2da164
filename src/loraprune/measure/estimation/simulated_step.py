"""One training step of an adapted model on the meta device: its memory and arithmetic by part and by moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from loraprune.importance.configs import Fisher
from loraprune.importance.criterion import Criterion
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.importance.moving_average import MovingAverage, updated
from loraprune.importance.whole_blocks import built_for, tell_micro_batches
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.measure.estimation.kernels import Kernels, LiveShapes, fused_loss, use_fused_attention_
from loraprune.measure.estimation.quantized import QuantizedShape
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure

PARTS = ("weights", "adapter", "optimizer", "gradients")
"""Parts that exist throughout; gradients from the backward pass on."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of a step besides the model.

    Attributes:
        inputs: inputs of the model, without labels; on the meta device.
        fused: whether the loss is that of trl's head, which takes the hidden states; else the model's own.
        labels: labels for the model's own loss.
        device: simulated device, ``cuda`` or ``cpu``.
        autocast: whether products are computed in bfloat16.
        checkpointing: whether each block's activations are recomputed in the backward pass.
        micro_batches: backward passes per step.
        criterion: criterion that collects evidence; None is plain LoRA.
        states: number of 32-bit tensors of a parameter's size that the optimizer keeps.
        processes: number of processes that share the step; this is one of them.
    """

    inputs: Mapping[str, Any]
    fused: bool
    labels: torch.Tensor | None = None
    device: str = "cuda"
    autocast: bool = True
    checkpointing: bool = True
    micro_batches: int = 1
    criterion: CriterionConfig | None = field(default_factory=Fisher)
    states: int = 2
    processes: int = 1


def tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors of a model: parameters, buffers, and the additional tensors of simulated quantized layers."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from getattr(module, "stored", ())


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of some tensors, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@contextmanager
def _listening(model: nn.Module, structure: Structure, settings: StepSettings) -> Iterator[Criterion | None]:
    if settings.criterion is None:
        yield None
        return
    criterion = built_for(settings.criterion, structure)
    tell_micro_batches(criterion, settings.micro_batches * settings.processes)
    criterion.attach(model, structure)
    try:
        yield criterion
    finally:
        criterion.detach()


def watch_blocks(model: nn.Module, structure: Structure, live: LiveShapes) -> list[Any]:
    """Start a segment at each block, forward and backward."""
    base = base_model(model)
    handles = []

    def entered(number: int) -> Callable[..., None]:
        return lambda module, args: live.begin(f"forward {number}") if "forward" in live.segment else None

    def left(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda gradient: live.begin(f"backward {number}"))
            if number == len(structure.blocks) - 1 and "forward" in live.segment:
                live.begin("forward loss")

        return hook

    for number, name in enumerate(structure.blocks):
        block = base.get_submodule(name)
        handles += [block.register_forward_pre_hook(entered(number)), block.register_forward_hook(left(number))]
    return handles


def _checkpointed_(model: nn.Module, kernels: Callable[[], Kernels]) -> Callable[[], None]:
    """Recompute activations like transformers, with the stand-in for autocast on. Return a function that undoes it."""
    again = partial(
        checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), kernels())
    )
    base = base_model(model)
    base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)
    return lambda: base._set_gradient_checkpointing(enable=False)


def _loss(model: nn.Module, settings: StepSettings) -> torch.Tensor:
    base: Any = base_model(model)
    if not settings.fused:
        loss: torch.Tensor = base(**settings.inputs, labels=settings.labels).loss
        return loss
    hidden = base.base_model(**{**settings.inputs, "use_cache": False}).last_hidden_state
    return fused_loss(hidden, base.get_output_embeddings(), settings.device, autocast=settings.autocast)


def _casts_of_adapters_(model: nn.Module, structure: Structure, settings: StepSettings) -> Callable[[], None]:
    """Disable peft's cast to 32 bits where a real run has none: bitsandbytes' layers under autocast, and behind gates.

    The criterion's gates check whether autocast is on, which is impossible on the meta device. Return a function that
    undoes the change.
    """
    changed: list[Any] = []
    gated = {dimension.consumer.module for dimension in structure if not dimension.spans_blocks}
    behind_gates = isinstance(settings.criterion, Fisher)
    for name, module in base_model(model).named_modules():
        if not settings.autocast or not hasattr(module, "lora_A"):
            continue
        layer = base_layer(module)
        of_bitsandbytes = isinstance(layer, QuantizedShape) and layer.quantization != "torchao-int8"
        if of_bitsandbytes or (behind_gates and name in gated):
            changed.append(module)
    for module in changed:
        module.cast_input_dtype_enabled = False

    def back() -> None:
        for module in changed:
            module.cast_input_dtype_enabled = True

    return back


@dataclass(frozen=True, kw_only=True)
class SimulatedStep:
    """Memory and arithmetic of one training step, from shapes.

    Attributes:
        blocks: number of blocks of the model.
        left: bytes that the previous micro-batch left: gradients, and what a criterion keeps until the end of a step.
        parts: bytes of each of :data:`PARTS`.
        of_block: the same for a single block, the second one if there are several.
        activations: bytes saved for the backward pass once the loss is computed.
        starts: live bytes at the start of each segment.
        peaks: peak of live bytes in each segment. Segments are ``forward``, ``forward 0`` (of the first block) and so
            on, ``forward loss``, ``backward loss``, ``backward 2`` and so on down to 0, ``backward end`` (when the loss
            still holds the rest of the graph), ``update``.
        flops: floating point operations of each segment; recomputation counts as backward.
    """

    blocks: int
    left: int
    parts: dict[str, int]
    of_block: dict[str, int]
    activations: int
    starts: dict[str, int]
    peaks: dict[str, int]
    flops: dict[str, int]


def simulate(model: nn.Module, structure: Structure, settings: StepSettings) -> SimulatedStep:
    """Run one training step on shapes alone.

    Args:
        model: with its adapter, on the meta device, in the dtypes of its training; not modified.
        structure: its description.
        settings: settings of the step.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [torch.empty_like(p, dtype=torch.float32) for p in trained for _ in range(settings.states)]
    given = [v for v in (*settings.inputs.values(), settings.labels) if isinstance(v, torch.Tensor)]
    live = LiveShapes([*tensors_of(model), *states, *given])
    try:
        with ExitStack() as stack:
            kept, left = _run(model, structure, settings, live, stack)
        of_block = _parts(
            base_model(model).get_submodule(structure.blocks[min(1, len(structure.blocks) - 1)]), settings
        )
        parts = _parts(model, settings)
    finally:
        for parameter in trained:
            parameter.grad = None
    return SimulatedStep(
        blocks=len(structure.blocks),
        left=left,
        parts=parts,
        of_block=of_block,
        activations=kept,
        starts=live.starts,
        peaks=live.peaks,
        flops=dict(live.flops),
    )


def _parts(module: nn.Module, settings: StepSettings) -> dict[str, int]:
    """Bytes of a module's tensors after a backward pass, by :data:`PARTS`."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    mine = {id(parameter) for parameter in trained}
    return {
        "weights": bytes_of(tensor for tensor in tensors_of(module) if id(tensor) not in mine),
        "adapter": bytes_of(trained),
        "optimizer": sum(p.numel() for p in trained) * torch.float32.itemsize * settings.states,
        "gradients": bytes_of(p.grad for p in trained if p.grad is not None),
    }


def _run(
    model: nn.Module, structure: Structure, settings: StepSettings, live: LiveShapes, stack: ExitStack
) -> tuple[int, int]:
    """Run the last micro-batch of a step, and the scores.

    Returns:
        Bytes saved for the backward pass, and bytes that the previous micro-batch had left.
    """
    kernels = partial(Kernels, live, settings.device, settings.autocast)
    stack.callback(use_fused_attention_(base_model(model)))
    for handle in watch_blocks(model, structure, live):
        stack.callback(handle.remove)
    if settings.checkpointing:
        stack.callback(_checkpointed_(model, kernels))
    stack.callback(_casts_of_adapters_(model, structure, settings))
    criterion = stack.enter_context(_listening(model, structure, settings))
    stack.enter_context(live)
    average = MovingAverage()
    if criterion is not None and criterion.every_step:
        # The average of earlier steps already exists.
        average = updated(average, _some_scores(structure), 0.9)
    before, left = live.now, 0
    if settings.micro_batches > 1:
        _micro_batch(model, settings, live, kernels)
        left = live.now - before
        live.forget()
    kept = _micro_batch(model, settings, live, kernels)
    live.begin("update")
    scores = criterion.scores(Plan.full(structure)) if criterion is not None else None
    if scores:
        average = updated(average, scores, 0.9)
    return kept, left


def _micro_batch(model: nn.Module, settings: StepSettings, live: LiveShapes, kernels: Callable[[], Kernels]) -> int:
    """Run one forward and backward pass. Return the bytes saved for the latter."""
    live.begin("forward")
    before = live.now
    with kernels():
        loss = _loss(model, settings)
    kept = live.now - before
    live.begin("backward loss")
    loss.backward()
    live.begin("backward end")
    return kept


def _some_scores(structure: Structure) -> dict[str, torch.Tensor]:
    return {dimension.name: torch.empty(dimension.num_groups, device="meta") for dimension in structure}
