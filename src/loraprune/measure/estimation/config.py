"""Configuration of an estimated run: everything that its memory and time depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraprune.options.field import check_choice, check_fields, setting
from loraprune.options.precision import DTYPE_NAMES, QUANTIZATIONS
from loraprune.options.sizes import byte_count, share_or_bytes
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions

DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """A run of ``loraprune.prune`` to estimate; the defaults are those of such a run on an accelerator.

    Attributes:
        pruning: pruning options.
        target_params: parameters of the result, instead of the ratio; ``target_size``: bytes of its weights, likewise;
            ``target_kv_cache``: share of the dense cache, or its bytes for one sequence of the whole context.
        lora: the adapter.
        batch_size: rows per micro-batch.
        max_length: tokens per row; None is 1024, or the model's context if that is shorter.
        gradient_accumulation_steps: micro-batches per step.
        gradient_checkpointing: recompute activations in the backward pass; None does so if the model can.
        quantization: ``bnb-8bit``, ``bnb-4bit``, ``torchao-int8``, or None.
        dtype: dtype of the stored checkpoint; None takes it from the config.
        bf16: matrix products in bfloat16 (autocast); None: on ``cuda``.
        distill: share of the loss that follows the dense model, which then stays in memory; None is 0.
        device: ``cuda``, or ``cpu`` (used to validate the estimate).
    """

    pruning: PruningConfig = field(default_factory=PruningConfig)
    target_params: int | None = setting(None, within="[1, inf)")
    target_size: int | str | None = None
    target_kv_cache: float | str | None = None
    lora: LoraOptions = field(default_factory=LoraOptions)
    batch_size: int = setting(8, within="[1, 1000000]")
    max_length: int | None = setting(None, within="[2, inf)", why="sequences need at least 2 tokens")
    gradient_accumulation_steps: int = setting(1, within="[1, 1000000]")
    gradient_checkpointing: bool | None = None
    quantization: str | None = None
    dtype: str | None = None
    bf16: bool | None = None
    distill: float | None = setting(None, within="[0, 1]")
    device: str = "cuda"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.target_size is not None:
            object.__setattr__(self, "target_size", byte_count("target_size", self.target_size))
        if self.target_kv_cache is not None:
            share = share_or_bytes("target_kv_cache", self.target_kv_cache)
            object.__setattr__(self, "target_kv_cache", share)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, tuple(QUANTIZATIONS))
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPE_NAMES)
        check_choice("device", self.device, DEVICES)
        if self.pruning.unstructured:
            raise ValueError(
                "The criterion 'pst' makes single weights zero, and the model keeps its shapes: there is nothing to "
                "plan. Leave it out."
            )
        if self.pruning.criterion.learns:
            raise ValueError(
                "The memory of the criterion 'compresso', which learns gates, cannot be estimated. Use 'fisher', whose "
                "memory is closest."
            )

    @property
    def autocast(self) -> bool:
        """Whether matrix products are computed in bfloat16."""
        return self.device == "cuda" if self.bf16 is None else self.bf16
