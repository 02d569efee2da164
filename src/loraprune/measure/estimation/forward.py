"""A forward pass without gradients on the meta device: its arithmetic and its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.unwrap import base_model
from loraprune.measure.estimation.kernels import Kernels, LiveShapes, use_fused_attention_
from loraprune.measure.estimation.simulated_step import tensors_of, watch_blocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from loraprune.structure.dimensions import Structure


@dataclass(frozen=True, kw_only=True)
class ForwardSize:
    """Needs of a forward pass.

    Attributes:
        flops: floating point operations.
        cache: bytes of the keys and values of all inputs; 0 if none are kept.
    """

    flops: float
    cache: float


@torch.no_grad()
def forward_size(
    model: PreTrainedModel, structure: Structure, inputs: Mapping[str, torch.Tensor], *, cached: bool, depth: int
) -> ForwardSize:
    """Run a forward pass on shapes alone.

    Args:
        model: without an adapter, on the meta device.
        structure: its description.
        inputs: inputs of the model.
        cached: whether it keeps keys and values.
        depth: number of blocks of the estimated model; ``model`` may have fewer, all alike.
    """
    live = LiveShapes()
    output = _passed(model, structure, live, "cuda", lambda: model(**inputs, **({"use_cache": True} if cached else {})))
    caches = [_bytes(layer) for layer in getattr(getattr(output, "past_key_values", None), "layers", ())]
    more = depth - len(structure.blocks)
    return ForwardSize(
        flops=sum(live.flops.values()) + more * live.flops.get("forward 1", 0),
        cache=sum(caches) + (more * caches[1] if more else 0) if caches else 0.0,
    )


@torch.no_grad()
def block_bytes(model: nn.Module, structure: Structure, inputs: Mapping[str, torch.Tensor], *, device: str) -> int:
    """Return the peak bytes that a block allocates in a forward pass without gradients, in addition to its input.

    Args:
        model: with its adapter, on the meta device.
        structure: its description.
        inputs: inputs of the model.
        device: simulated device.
    """
    live = LiveShapes(tensors_of(model))
    decoder: Any = base_model(model).base_model
    further = {} if structure.spec.decoder is None else {"use_cache": False}
    _passed(model, structure, live, device, lambda: decoder(**inputs, **further))
    block = f"forward {min(1, len(structure.blocks) - 1)}"
    return live.peaks[block] - live.starts[block]


def _passed(model: nn.Module, structure: Structure, live: LiveShapes, device: str, call: Callable[[], Any]) -> Any:
    """Output of a forward pass that is watched block by block."""
    model.eval()
    live.begin("forward")
    with ExitStack() as stack:
        stack.callback(use_fused_attention_(base_model(model)))
        for handle in watch_blocks(model, structure, live):
            stack.callback(handle.remove)
        stack.enter_context(live)
        stack.enter_context(Kernels(live, device, autocast=False))
        return call()


def _bytes(layer: Any) -> int:
    kept = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(tensor.numel() * tensor.element_size() for tensor in kept if isinstance(tensor, torch.Tensor))
