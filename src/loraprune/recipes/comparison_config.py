"""Configuration of a comparison of criteria; does not import torch, so that a wrong option is reported at once."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.allocation.target import BY_SCORES
from loraprune.importance.configs import CRITERIA, GROUP_CRITERIA
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.options.field import check_choice, check_fields, setting
from loraprune.options.flat import options_of
from loraprune.options.near import did_you_mean
from loraprune.pruning.config import PruningConfig

OPTIONS = ("lora_form", "taylor_form", "group_reduction", "offload_grads")
"""Options of criteria that are flat fields here."""

LEARNING = ("compresso", "pst")
"""Criteria that change the training run, so that others beside them would see a different run."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Configuration of a comparison of criteria.

    Attributes:
        criteria: names, at least two; all pairs are compared, those with the first one first.
        ratios: sparsity ratios in (0, 1).
        steps: number of optimizer steps from which the criteria collect evidence.
        allocation: ``uniform`` removes the same number of groups in every layer for every criterion; with ``balanced``
            and ``global`` the numbers may differ.
        dimensions: kinds of dimensions; None is the family's default.
        keep_layers: layers that keep all of their groups.
        average_decay: λ of the moving averages, in [0, 1).
        average_bias_correction: correct the averages for their start at zero.
        lora_form: option of the criterion ``lora``; ``taylor_form`` and ``offload_grads``: options of ``taylor``;
            ``group_reduction``: option of both and of ``magnitude``. As in :class:`loraprune.PruningConfig`.
    """

    criteria: tuple[str, ...] = ("lora", "fisher", "taylor")
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    steps: int = setting(20, within="[1, 2147483647]", why="the criteria need steps to look at")
    allocation: str = "uniform"
    dimensions: tuple[str, ...] | None = None
    keep_layers: tuple[int | str, ...] = ()
    average_decay: float = 0.9
    average_bias_correction: bool = True
    lora_form: str = "squared"
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False

    def __post_init__(self) -> None:
        for name in ("criteria", "ratios"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = tuple(name for name in CRITERIA if name not in LEARNING)
        for name in self.criteria:
            if name in LEARNING:
                raise ValueError(
                    f"The criterion {name!r} learns its own masks during training, which changes the run for the "
                    f"others. Compare {', '.join(known)}."
                )
            if name not in known:
                raise ValueError(
                    f"There is no criterion {name!r}; choose from {', '.join(known)}.{did_you_mean(name, known)}"
                )
            if self.criteria.count(name) > 1:
                raise ValueError(f"The criterion {name!r} is listed twice. List each one once.")
        if len(self.criteria) < 2:
            named = f"only {self.criteria[0]!r}" if self.criteria else "none"
            raise ValueError(f"A comparison needs at least two criteria, and {named} is listed.")
        wrong = [ratio for ratio in self.ratios if not 0.0 < ratio < 1.0]
        if wrong or not self.ratios:
            raise ValueError(
                f"ratios are {', '.join(map(str, self.ratios)) or 'missing'}; pass at least one, each between 0 and 1."
            )
        check_fields(self)
        check_choice("allocation", self.allocation, BY_SCORES)
        self._check_options()
        self.tuning()

    def _check_options(self) -> None:
        """Check that each option belongs to one of the criteria and has an allowed value."""
        for name in OPTIONS:
            value, owners = getattr(self, name), [kind for kind in GROUP_CRITERIA.values() if name in options_of(kind)]
            default = options_of(owners[0])[name].default
            if value != default and not any(kind.name in self.criteria for kind in owners):
                raise ValueError(
                    f"{name} is {value!r}, an option of {', '.join(kind.name for kind in owners)}, and the criteria "
                    f"compared are {', '.join(self.criteria)}. Leave it out."
                )
            owners[0](**{options_of(owners[0])[name].name: value})  # checks the value

    def tuning(self) -> PruningConfig:
        """Return the configuration of the run, which removes nothing.

        Raises:
            ValueError: a value is wrong.
        """
        return PruningConfig(
            ratio=0.0,
            repair="none",
            criterion="lora" if "lora" in self.criteria else "fisher",
            dimensions=self.dimensions,
            keep_layers=self.keep_layers,
            average_decay=self.average_decay,
        )

    def configs(self) -> dict[str, CriterionConfig]:
        """Return the criteria with their options, by name."""
        found = {}
        for name in self.criteria:
            kind = GROUP_CRITERIA[name]
            own = {field.name: getattr(self, flat) for flat, field in options_of(kind).items() if flat in OPTIONS}
            found[name] = kind(**own)
        return found
