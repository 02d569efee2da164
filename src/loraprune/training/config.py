"""What to prune, when and how: the configuration of :class:`~loraprune.training.callback.PruningCallback`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from loraprune.allocation import ALLOCATIONS
from loraprune.criteria import CRITERIA, LORA_FORMS


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def _listed(name: str, value: Any, kind: type, what: str) -> tuple[Any, ...]:
    """A list of values of one type as a tuple."""
    if not isinstance(value, (list, tuple)) or not all(type(item) is kind for item in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of {what}.")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Configuration of structured pruning during training.

    Attributes:
        ratio: sparsity ratio: removed parameters as a share of those of the prunable dimensions, in [0, 1). With 0
            nothing is pruned and the run is plain fine-tuning.
        criterion: ``fisher`` (squared gradient of a gate on each group), ``lora`` (the LoRAPrune paper's),
            ``magnitude`` or ``random``.
        lora_form: for the criterion ``lora``: ``squared`` (paper, Eq. 10) or ``absolute`` (the authors' code).
        prune_start: fraction of the run before the first cut.
        prune_end: fraction of the run at which the last cut is made; the rest is recovery.
        cuts: number of cuts between the two, with ratios on a cubic curve.
        allocation: ``balanced`` (one head count and one channel count for all layers, split so that least importance
            is lost), ``uniform`` (heads and channels lose the same share, as in the paper) or ``global`` (groups of all
            layers compete; widths differ from layer to layer, and the result needs our modeling file).
        dimensions: kinds of dimensions to prune (``heads``, ``query_heads``, ``channels``, ``expert_channels``,
            ``experts``, ...); None takes the family's default.
        keep_layers: layers that keep all of their groups; negative ones count from the end. The ratio stays one of
            all prunable parameters, so that the other layers lose more.
        average_decay: λ of the moving average of scores, in [0, 1).
        average_bias_correction: divide out that the average starts at zero; off as in the paper.
        refit: repair each consumer by least squares after a cut.
        refit_damping: ridge of the refit as a share of the mean diagonal of the second moment.
        calibration_sequences: training sequences that the refit looks at.
        channel_multiple: FFN widths are rounded to a multiple of this; None chooses by size.
        any_head_count: allow head counts that the model's own config refuses; the result is then exported as the
            related architecture that accepts them (a Llama as a Mistral).
        apply: ``slice`` cuts the tensors; ``mask`` multiplies with zeros during training and cuts at its end.
        seed: of the draw of calibration sequences and of the criterion ``random``. ``loraprune.prune`` and the command
            line set it to the training's seed.
        max_skipped_steps: steps in a row with NaN or Inf that are skipped before training stops.
    """

    ratio: float = 0.5
    criterion: str = "fisher"
    lora_form: str = "squared"
    prune_start: float = 0.1
    prune_end: float = 0.3
    cuts: int = 5
    allocation: str = "balanced"
    dimensions: tuple[str, ...] | None = None
    keep_layers: tuple[int, ...] = ()
    average_decay: float = 0.9
    average_bias_correction: bool = True
    refit: bool = True
    refit_damping: float = 0.01
    calibration_sequences: int = 128
    channel_multiple: int | None = None
    any_head_count: bool = False
    apply: Literal["slice", "mask"] = "slice"
    seed: int = 42
    max_skipped_steps: int = 5

    def __post_init__(self) -> None:
        # Lists, as JSON and YAML have them, compare unequal to tuples.
        if self.dimensions is not None:
            kinds = _listed("dimensions", self.dimensions, str, "kinds, such as [heads, channels]")
            object.__setattr__(self, "dimensions", kinds)
            if not kinds:
                raise ValueError("dimensions is empty, so nothing would be pruned; leave it out for the default.")
        layers = _listed("keep_layers", self.keep_layers, int, "whole numbers, such as [0, -1]")
        object.__setattr__(self, "keep_layers", layers)
        if not 0.0 <= self.ratio < 1.0:
            raise ValueError(f"ratio is {self.ratio}; it must lie in [0, 1): the share of prunable weights that goes.")
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("lora_form", self.lora_form, LORA_FORMS)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("apply", self.apply, ("slice", "mask"))
        if not 0.0 <= self.prune_start <= self.prune_end <= 1.0 or self.prune_end == 0.0:
            raise ValueError(
                f"prune_start is {self.prune_start} and prune_end {self.prune_end}; both are fractions of the run, "
                "with 0 <= prune_start <= prune_end <= 1 and prune_end above 0."
            )
        if self.cuts < 1:
            raise ValueError(f"cuts is {self.cuts}; at least one cut is needed.")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay is {self.average_decay}; it must lie in [0, 1).")
        if self.refit_damping < 0.0:
            raise ValueError(f"refit_damping is {self.refit_damping}; it cannot be negative.")
        if self.refit and self.calibration_sequences < 1:
            raise ValueError("calibration_sequences is below 1: the refit needs at least one, or switch it off.")
        if self.refit and self.apply == "mask":
            raise ValueError("The refit needs sliced tensors: switch it off, or use apply='slice'.")
        if self.channel_multiple is not None and self.channel_multiple < 1:
            raise ValueError(f"channel_multiple is {self.channel_multiple}; it must be at least 1.")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps is {self.max_skipped_steps}; it cannot be negative.")

    @property
    def free_head_counts(self) -> bool:
        """Whether any head count may be chosen: asked for, or since our modeling file takes them all."""
        return self.any_head_count or self.allocation == "global"
