"""Memory and work of one process of a run, the input for estimates on several GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.measure.estimation.frozen_base import FrozenBase
from loraprune.measure.estimation.result import StepMemory


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its adapter, before or after the cuts.

    Attributes:
        base: its untrained weights.
        gradients: bytes of the gradients of the adapter.
        flops: floating point operations of a micro-batch.
        forward_flops: operations of its forward pass alone.
        dequantized: bytes of quantized weights that a step dequantizes.
    """

    base: FrozenBase
    gradients: float
    flops: float
    forward_flops: float
    dequantized: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """A run of ``loraprune prune``, for one of its processes.

    Attributes:
        before: the model before the cuts.
        after: the model after them.
        memory: bytes of a process that holds the whole model, without the buffers for averaging gradients.
        evidence: bytes that the criterion sums over the processes at each step.
        micro_batches: micro-batches per step.
        tokens: tokens of a micro-batch; for models without tokens, rows.
        dtype: dtype of the weights that are not quantized.
    """

    before: TrainedModel
    after: TrainedModel
    memory: StepMemory
    evidence: int
    micro_batches: int
    tokens: int
    dtype: str
