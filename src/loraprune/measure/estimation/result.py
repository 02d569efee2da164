"""What an estimate says, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from loraprune.measure.estimation.depth import StepSize


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model before or after pruning.

    Attributes:
        blocks: how many.
        widths: groups of each kind in each layer, the least and the most.
        hidden_size: width of the residual stream; 0 where it has none.
        parameters: all of them, tied ones once.
        file_bytes: of the checkpoint in its own dtype.
        forward_flops: of a forward pass over one row of the maximal length.
        cache_bytes: of keys and values for one token; None of models that keep none.
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
    """Bytes at the fullest moment of a training step, and at that of a cut.

    Attributes:
        weights: of the base.
        adapter: trained parameters with their gradients and what the optimizer keeps of them.
        activations: what waits for the backward pass.
        temporary: what is there for a moment: in the backward pass of a block, or in the loss.
        criterion: what the criterion adds.
        teacher: the dense model that tuning follows, its logits, and those of the model with their gradient.
        step: all of these: the peak of a step.
        cut: the peak of a cut with refit, weights and optimizer included; 0 without refit.
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
        """The most that the run needs at any moment."""
        return max(self.step, self.cut)

    @classmethod
    def of(cls, step: StepSize, plain: StepSize, cut: float = 0.0, teacher: float = 0.0) -> StepMemory:
        """Take a step apart.

        Args:
            step: with the criterion.
            plain: without one. A criterion may also save something: where gates sit, LoRA keeps no copy of its input.
            cut: bytes at the fullest moment of a cut, weights and optimizer included; 0 where nothing is refitted.
            teacher: bytes of a teacher and of the loss that follows it.
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
        gpu: its name.
        usable: bytes that tensors may take.
        needed: bytes that the run needs there.
        dtype: of the weights that are not quantized, there.
        seconds: of a step before the first cut.
        seconds_after: of a step after the last one.
        remedy: options with which it fits; None where it fits, or where none of those tried is enough.
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
        """Whether it does."""
        return self.needed <= self.usable


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What pruning a model will take and give, from its shapes alone.

    Attributes:
        model: as it was named.
        model_type: its family.
        asked: the ratio asked for.
        ratio: the ratio that the widths come to.
        settings: of the run, as plain values.
        before: the model as it is.
        after: the pruned model.
        memory: of the run while nothing is cut: its peak.
        memory_after: of a step after the last cut.
        step_flops: floating point operations of a step before the first cut.
        step_flops_after: likewise after the last one.
        gpus: which accelerators it fits.
        notes: what was assumed for this model in particular.
        loads_in: what will load the result, and why others will not.
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
        """As plain values; bytes, floating point operations and seconds."""
        values = asdict(self)
        for name in ("memory", "memory_after"):
            values[name]["peak"] = getattr(self, name).peak
        for entry, fit in zip(values["gpus"], self.gpus, strict=True):
            entry["fits"] = fit.fits
        return values
