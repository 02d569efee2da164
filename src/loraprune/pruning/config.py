"""What to prune, when and how: the configuration of :class:`~loraprune.pruning.callback.PruningCallback`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from loraprune.allocation.schedule import Schedule
from loraprune.allocation.target import Target
from loraprune.compat.renamed import Renamed, renamed_fields, translated, under_old_names
from loraprune.importance.configs import GROUP_CRITERIA, Pst
from loraprune.importance.criterion_config import CriterionConfig, own_criterion
from loraprune.options.field import setting
from loraprune.options.flat import Flat, Part
from loraprune.sparsity.configs import ZEROING_METHODS
from loraprune.surgery.repairs import REPAIRS, Repair

RENAMED = {
    "refit": Renamed(
        "repair",
        lambda refit: {True: "refit", False: "none"}.get(refit, refit),
        lambda repair: {"refit": True, "none": False}.get(getattr(repair, "name", repair), repair),
    ),
    "refit_damping": Renamed("damping"),
    "any_head_count": Renamed("head_counts", lambda free: "any" if free else "config", lambda counts: counts == "any"),
}
"""Fields of :class:`PruningConfig` by their old names, which saved runs keep."""

JOINT_CRITERIA = GROUP_CRITERIA | {"pst": Pst}
"""Criteria of the joint recipe, by name."""

_SPEAK_OF_GROUPS = ("allocation", "widths", "dimensions", "channel_multiple", "head_counts")


@renamed_fields(**RENAMED)
@dataclass(frozen=True, init=False)
class PruningConfig(Flat):
    """Configuration of pruning during training; every option of its parts is also a flat keyword.

    Example::

        PruningConfig(ratio=0.5, criterion="taylor", taylor_form="first", cuts=3, repair="stream")
        PruningConfig(
            target=Target(ratio=0.5), criterion=Taylor(form="first"), schedule=Schedule(cuts=3), repair=Stream()
        )

    Attributes:
        target: what to prune, how much, and how that is spread. Flat: ``ratio``, ``widths``, ``allocation``,
            ``dimensions``, ``keep_layers``, ``channel_multiple``, ``head_counts``; see
            :class:`~loraprune.allocation.target.Target`. With a ratio of 0 nothing is pruned and the run is plain
            fine-tuning.
        criterion: ``fisher`` (squared gradient of a gate on each group), ``lora`` (the LoRAPrune paper's), ``taylor``
            (exact gradients of the weights), ``magnitude``, ``wanda``, ``flap``, ``random`` or ``compresso`` (learned
            gates). Whole blocks also take ``position``, a cut before the first step ``osscar``; ``pst`` makes single
            weights zero. Or an object of :mod:`loraprune.criteria`, such as ``Taylor(form="first")``, or of your own
            subclass of :class:`loraprune.criteria.Criterion`. Flat: ``lora_form``, ``taylor_form``,
            ``group_reduction``, ``offload_grads``, and mappings of options as ``compresso`` and ``pst``.
        schedule: times of the cuts. Flat: ``prune_start``, ``prune_end``, ``cuts``, ``cut_every``; see
            :class:`~loraprune.allocation.schedule.Schedule`.
        repair: repair of each consumer after a cut: ``refit``, ``stream``, ``stream+readers``, ``bias`` or
            ``none``, or an object of :mod:`loraprune.repairs`. Flat: ``damping``.
        calibration_sequences: number of training sequences for the repair.
        average_decay: λ of the moving average of scores, in [0, 1).
        average_bias_correction: correct the average for its start at zero; the paper does not.
        apply: ``slice`` cuts the tensors; ``mask`` multiplies by zeros during training and cuts at its end.
        max_skipped_steps: number of consecutive steps with NaN or Inf that are skipped before training stops.
        seed: seed of the draw of calibration sequences and of the criterion ``random``. ``loraprune.prune`` and the
            command line set it to the training's seed.
    """

    target: Target
    criterion: CriterionConfig = setting(
        None,
        "score that decides what to remove: fisher, lora, taylor, magnitude, wanda, flap, random, compresso or pst; "
        "before training also osscar, for blocks also position",
    )
    schedule: Schedule = field(default_factory=Schedule)
    repair: Repair = setting(
        None,
        "fit of the remaining weights after a cut: refit (to each layer's output), stream (to the residual stream), "
        "stream+readers, bias (FLAP) or none",
    )
    calibration_sequences: int = setting(128, "rows of training data that the repair uses", within="[0, 1000000]")
    average_decay: float = setting(0.9, "decay of the moving average of scores", within="[0, 1)")
    average_bias_correction: bool = setting(True, "correct the moving average for its start at zero")
    apply: Literal["slice", "mask"] = setting(
        "slice",
        "slice cuts tensors during training; mask multiplies with zeros and cuts at the end",
        choices=("slice", "mask"),
    )
    max_skipped_steps: int = setting(5, "consecutive steps with NaN or Inf that stop the run", within="[0, inf)")
    seed: int = 42

    parts: ClassVar = {
        "target": Part({"target": Target}),
        "criterion": Part(
            JOINT_CRITERIA,
            adopt=own_criterion,
            refused={
                name: f"The criterion {name!r} makes weights zero without training. Use loraprune oneshot, or choose "
                f"one of {', '.join(JOINT_CRITERIA)}."
                for name in ZEROING_METHODS
                if name not in JOINT_CRITERIA
            },
        ),
        "schedule": Part({"schedule": Schedule}),
        "repair": Part(REPAIRS),
    }

    def _check(self) -> None:
        can_try = self.cuts_first and self.repairs and not self.unstructured
        if self.target.allocation is None:
            allocation = "measured" if can_try else "balanced"
            object.__setattr__(self, "target", replace(self.target, allocation=allocation))
        if self.target.allocation == "measured" and not can_try:
            raise ValueError(
                "allocation is 'measured', which tries cuts with repair before the first step: it needs a repair, "
                "prune_start=0 and cuts=1 (--prune-start 0 --cuts 1). Otherwise use 'balanced'."
            )
        if self.unstructured:
            self._check_unstructured()
        if self.cuts_first:
            self._check_cuts_first()
        elif self.criterion.too_slow:
            raise ValueError(
                f"The criterion {self.criterion.name!r} {self.criterion.too_slow}. Cut once, before the first step: "
                "prune_start=0, cuts=1 (--prune-start 0 --cuts 1)."
            )
        if self.repairs and self.calibration_sequences < 1:
            raise ValueError(
                "calibration_sequences is below 1; the repair needs at least one. Raise it, or use repair='none'."
            )
        if self.repairs and self.apply == "mask":
            raise ValueError("A repair needs sliced tensors: use repair='none' (--repair none), or apply='slice'.")

    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Keep a single cut at a start of 0 before the first step only if the criterion and ``apply`` allow that."""
        if values.get("prune_end") is not None or isinstance(values.get("schedule"), Schedule):
            return values
        given = values.get("criterion")
        kind = JOINT_CRITERIA.get(given) if isinstance(given, str) else type(given)
        if getattr(kind, "needs_training", "") or values.get("apply") == "mask":
            return values | {"prune_end": 0.3}
        return values

    def _check_cuts_first(self) -> None:
        """Refuse options that need training if everything is cut before it."""
        if self.criterion.needs_training:
            raise ValueError(
                f"The criterion {self.criterion.name!r} {self.criterion.needs_training}, and with prune_end=0 "
                "everything is cut before the first step. Choose another criterion, or set prune_end above 0."
            )
        if self.apply == "mask":
            raise ValueError("With prune_end=0 everything is cut before the first step. Masks have no use: use slice.")

    def _check_unstructured(self) -> None:
        """Refuse options about groups, other than the defaults, if single weights become zero."""
        ours = Target(allocation="balanced")
        odd = [name for name in _SPEAK_OF_GROUPS if getattr(self.target, name) != getattr(ours, name)]
        if odd or self.apply != "slice":
            name = odd[0] if odd else "apply"
            raise ValueError(
                f"{name} is {getattr(self, name)!r}, an option for groups, and the criterion 'pst' makes single "
                "weights zero. Leave it out."
            )

    @property
    def criterion_name(self) -> str:
        """Name of the criterion; for a user's own criterion, the name of its class."""
        return self.criterion.name

    @property
    def cuts_first(self) -> bool:
        """Whether everything is cut before the first step."""
        return self.schedule.before_training

    @property
    def unstructured(self) -> bool:
        """Whether single weights become zero and no group is removed."""
        return self.criterion.unstructured

    @property
    def repairs(self) -> bool:
        """Whether the consumers are repaired after a cut."""
        return self.repair.reads_data

    @property
    def free_head_counts(self) -> bool:
        """Whether :attr:`Target.legal_head_counts` is ``any``; the old form of that option."""
        return self.target.legal_head_counts == "any"

    def to_saved(self) -> dict[str, Any]:
        """Return the options flat, as plain values, under the names that saved runs use."""
        return under_old_names(self.flat(), RENAMED)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> PruningConfig:
        """Reverse :meth:`to_saved`; options that the criterion and the repair do not have are left out.

        Raises:
            ValueError: a value is not allowed.
        """
        return cls(**cls.own_options(translated(values, RENAMED)))
