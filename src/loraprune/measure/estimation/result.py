"""Result of an estimate, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from loraprune.measure.estimation.depth import StepSize


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model before or after pruning.

    Attributes:
        blocks: number of blocks.
        widths: minimum and maximum number of groups per layer, by kind.
        hidden_size: width of the residual stream; 0 if it has none.
        parameters: all parameters, tied ones once.
        file_bytes: bytes of the checkpoint in its own dtype.
        forward_flops: operations of a forward pass over one row of the maximum length.
        cache_bytes: bytes of keys and values per token; None for models without a cache.
    """

    blocks: int
    widths: dict[str, tuple[int, int]]
    hidden_size: int
    parameters: int
    file_bytes: int
    forward_flops: float
    cache_bytes: float | None


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes at the peak of a training step, and at the peak of a cut.

    Attributes:
        weights: weights of the base.
        adapter: trained parameters with their gradients and the optimizer's states.
        activations: tensors saved for the backward pass.
        temporary: short-lived tensors in the backward pass of a block, or in the loss.
        criterion: additional bytes of the criterion.
        teacher: the dense model for distillation, its logits, and those of the model with their gradient.
        step: sum of these: the peak of a step.
        cut: peak of a cut with refit, including weights and optimizer; 0 without refit.
    """

    weights: float
    adapter: float
    activations: float
    temporary: float
    criterion: float
    step: float
    cut: float = 0.0
    teacher: float = 0.0

    @property
    def peak(self) -> float:
        """Peak bytes of the whole run."""
        return max(self.step, self.cut)

    @classmethod
    def of(cls, step: StepSize, plain: StepSize, cut: float = 0.0, teacher: float = 0.0) -> StepMemory:
        """Split a step into parts.

        Args:
            step: with the criterion.
            plain: without one. A criterion may also save memory: where it has gates, LoRA keeps no copy of its input.
            cut: peak bytes of a cut, including weights and optimizer; 0 without a refit.
            teacher: bytes of a teacher and of its loss.
        """
        criterion = max(0.0, step.peak - plain.peak)
        rest = step.peak - criterion - step.weights - step.adapter
        activations = max(0.0, min(step.activations, rest))
        return cls(
            weights=step.weights,
            adapter=step.adapter,
            activations=activations,
            temporary=rest - activations,
            criterion=criterion,
            step=step.peak + teacher,
            cut=cut,
            teacher=teacher,
        )


@dataclass(frozen=True, kw_only=True)
class GpuFit:
    """Whether a run fits an accelerator.

    Attributes:
        gpu: name of the accelerator.
        usable: bytes available to tensors.
        needed: bytes that the run needs on it.
        dtype: dtype of the weights that are not quantized, on this accelerator.
        seconds: seconds of a step before the first cut.
        seconds_after: seconds of a step after the last one.
        remedy: options with which it fits; None if it fits, or if none of those tried is enough.
    """

    gpu: str
    usable: float
    needed: float
    dtype: str
    seconds: float
    seconds_after: float
    remedy: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.needed <= self.usable


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Needs and result of pruning a model, from its shapes alone.

    Attributes:
        model: name as given.
        model_type: model type of its config.
        asked: requested ratio.
        ratio: actual ratio of the widths.
        settings: settings of the run, as plain values.
        before: the model before pruning.
        after: the pruned model.
        memory: peak of the run before any cut.
        memory_after: peak of a step after the last cut.
        step_flops: floating point operations of a step before the first cut.
        step_flops_after: the same after the last one.
        gpus: fit on each accelerator.
        notes: assumptions for this model in particular.
        loads_in: runtimes that can load the result, and reasons why others cannot.
    """

    model: str
    model_type: str
    asked: float
    ratio: float
    settings: dict[str, Any]
    before: ModelSize
    after: ModelSize
    memory: StepMemory
    memory_after: StepMemory
    step_flops: float
    step_flops_after: float
    gpus: tuple[GpuFit, ...]
    notes: tuple[str, ...] = ()
    loads_in: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain values: bytes, floating point operations and seconds."""
        values = asdict(self)
        for name in ("memory", "memory_after"):
            values[name]["peak"] = getattr(self, name).peak
        for entry, fit in zip(values["gpus"], self.gpus, strict=True):
            entry["fits"] = fit.fits
        return values
