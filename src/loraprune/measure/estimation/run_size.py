"""What one process of a run holds and computes: all that its memory and its time on several GPUs follow from."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.frozen_base import FrozenBase
from loraprune.measure.estimation.result import StepMemory


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its adapter, before the cuts or after them.

    Attributes:
        base: its weights that are not trained.
        gradients: bytes of the gradients of the adapter.
        flops: floating point operations of a micro-batch.
        forward_flops: of its forward pass alone.
        dequantized: bytes of weights that a step writes anew, since they are quantized.
    """

    base: FrozenBase
    gradients: float
    flops: float
    forward_flops: float
    dequantized: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """A run of ``loraprune prune`` as one of its processes sees it.

    Attributes:
        before: the model before the cuts.
        after: the same after them.
        memory: of a process that holds the whole model; what averages gradients is not part of it.
        evidence: bytes that the criterion adds up over the processes at each step.
        micro_batches: in a step.
        tokens: of a micro-batch; of models without tokens, rows.
        dtype: of the weights that are not quantized.
    """

    before: TrainedModel
    after: TrainedModel
    memory: StepMemory
    evidence: int
    micro_batches: int
    tokens: int
    dtype: str
