"""Configurations of the criteria: each class checks its options, declares what it reads, and builds the criterion.

The implementations are in modules of the same names. They are imported when a criterion is built, so a wrong option is
reported before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from loraprune.importance.criterion_config import CriterionConfig, Scale
from loraprune.options.field import setting

if TYPE_CHECKING:
    import torch

    from loraprune.calibration.features import FeatureStatistics
    from loraprune.importance.criterion import Criterion
    from loraprune.importance.moving_average import Scores
    from loraprune.structure.dimensions import Structure

LoraForm = Literal["squared", "absolute"]
LORA_FORMS: tuple[str, ...] = get_args(LoraForm)
TaylorForm = Literal["squared", "first", "second", "mix", "vectorize"]
TAYLOR_FORMS: tuple[str, ...] = get_args(TaylorForm)
GroupReduction = Literal["sum", "mean", "max", "prod", "first", "last"]
GROUP_REDUCTIONS: tuple[str, ...] = get_args(GroupReduction)
_REDUCTION_HELP = "criteria taylor, lora and magnitude: how the scores of a group's layers are combined"
Ramp = Literal["linear", "cubic"]
RAMPS: tuple[str, ...] = get_args(Ramp)

DEFAULT_PROMPT = (
    "Some heads and channels of this model are being switched off while it learns. Parts that are missing now will not "
    "come back, so rely on those that are left, and answer as well as the whole model would."
)
"""Our own text; the prompt of the Compresso paper says the same at greater length."""


@dataclass(frozen=True)
class Fisher(CriterionConfig):
    """The default: the mean over sequences of the squared gradient of a gate on each group."""

    name = "fisher"
    comparable = True
    reads_gradients = True

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.fisher import FisherCriterion

        return FisherCriterion()


@dataclass(frozen=True)
class LoraGuided(CriterionConfig):
    """The criterion of the LoRAPrune paper (arXiv 2305.18403, Eq. 4 and 10).

    Attributes:
        form: ``squared`` is the paper's form; ``absolute`` is that of the authors' code.
        reduction: how the scores of a group's layers are combined.
    """

    name = "lora"
    comparable = True
    reads_gradients = True
    reads_effective_weights = True
    sums_weights = True
    needs_training = "scores groups by the gradients of a trained adapter"
    form: str = setting(
        "squared",
        "criterion lora: score of the paper (squared) or of its code (absolute)",
        choices=LORA_FORMS,
        flat="lora_form",
    )
    reduction: str = setting("sum", _REDUCTION_HELP, choices=GROUP_REDUCTIONS, flat="group_reduction")

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.lora import LoraCriterion

        return LoraCriterion(self.form, self.reduction)

    def check(self, structure: Structure, *, while_training: bool = True) -> None:
        super().check(structure, while_training=while_training)
        if self.form == "absolute" and "blocks" in structure.kinds:
            raise ValueError(
                "lora_form='absolute' divides the scores of each layer by their norm over its groups. Each layer of a "
                "block has one group, so all blocks would score the same. Choose lora_form='squared'."
            )


@dataclass(frozen=True)
class Taylor(CriterionConfig):
    """Importance of a group's weights from their exact gradients (arXiv 2305.18403, 2305.11627).

    Attributes:
        form: ``squared`` (the LoRAPrune paper's vanilla criterion) or LLM-Pruner's ``first``, ``second``, ``mix`` and
            ``vectorize``; see :func:`loraprune.importance.taylor_forms.importance`.
        reduction: how the scores of a group's layers are combined.
        offload: whether weight gradients that must be kept until the end of a step are kept in CPU memory.
    """

    name = "taylor"
    comparable = True
    looks_into_experts = False
    reads_gradients = True
    reads_effective_weights = True
    sums_weights = True
    form: str = setting(
        "squared",
        "criterion taylor: squared is LoRAPrune's, the others are LLM-Pruner's",
        choices=TAYLOR_FORMS,
        flat="taylor_form",
    )
    reduction: str = setting("sum", _REDUCTION_HELP, choices=GROUP_REDUCTIONS, flat="group_reduction")
    offload: bool = setting(False, "criterion taylor: keep gradients in CPU memory", flat="offload_grads")

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.taylor import TaylorCriterion

        return TaylorCriterion(self.form, self.reduction, offload=self.offload)


@dataclass(frozen=True)
class Magnitude(CriterionConfig):
    """Squared magnitude of the effective weights of each group.

    Attributes:
        reduction: how the scores of a group's layers are combined.
    """

    name = "magnitude"
    reads_data = False
    reads_effective_weights = True
    sums_weights = True
    reduction: str = setting("sum", _REDUCTION_HELP, choices=GROUP_REDUCTIONS, flat="group_reduction")

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.magnitude import MagnitudeCriterion

        return MagnitudeCriterion(self.reduction)


@dataclass(frozen=True)
class AtConsumers(CriterionConfig):
    """Base of the criteria that score a dimension by the inputs of its consumer, the one layer that reads it.

    Attributes:
        reads_moment: whether the criterion needs the second moment of the inputs rather than sums per feature.
    """

    at_consumers = True
    looks_into_experts = False
    reads_effective_weights = True
    reads_moment: ClassVar[bool] = False

    def group_scores(
        self, weight_OI: torch.Tensor, inputs: FeatureStatistics, positions_GK: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores of the groups of one dimension, shape ``(groups,)``, float32.

        Args:
            weight_OI: effective weight of the consumer.
            inputs: statistics of its input features.
            positions_GK: columns that belong to each group, int64.
        """
        raise NotImplementedError

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.consumer_inputs import FeatureCriterion

        return FeatureCriterion(self.name, self.group_scores)


@dataclass(frozen=True)
class Wanda(AtConsumers):
    """Magnitude of a consumer's weights times the magnitude of the inputs that they multiply (arXiv 2306.11695)."""

    name = "wanda"

    def group_scores(
        self, weight_OI: torch.Tensor, inputs: FeatureStatistics, positions_GK: torch.Tensor
    ) -> torch.Tensor:
        from loraprune.importance.wanda import wanda_group_scores

        return wanda_group_scores(weight_OI, inputs.mean_square, positions_GK)


@dataclass(frozen=True)
class Flap(AtConsumers):
    """How much each group makes a consumer's output fluctuate (FLAP, arXiv 2312.11983)."""

    name = "flap"

    def group_scores(
        self, weight_OI: torch.Tensor, inputs: FeatureStatistics, positions_GK: torch.Tensor
    ) -> torch.Tensor:
        from loraprune.importance.flap import flap_group_scores

        return flap_group_scores(weight_OI, inputs.variance, positions_GK)

    def scaled(self, scores: Scores, allocation: str, structure: Structure) -> tuple[Scores, Scale]:
        """Standardize the scores and compare layers by rank, as FLAP does for a global allocation."""
        from loraprune.importance.flap import standardized

        if allocation != "global":
            return super().scaled(scores, allocation, structure)
        sizes = {dimension.name: dimension.consumer.group_size for dimension in structure}
        return {name: standardized(values, sizes[name]) for name, values in scores.items()}, "rank"


@dataclass(frozen=True)
class Osscar(AtConsumers):
    """Greedy elimination by the error that remains after the consumer is refitted (OSSCAR, arXiv 2403.12983).

    Attributes:
        damping: ridge as a share of the mean diagonal of the second moment, as in the repair.
    """

    name = "osscar"
    reads_moment = True
    too_slow = "compares groups by the error that remains after their repair, which is too slow at every step"
    damping: float = setting(0.01, within="[0, inf)", idle=True)

    def group_scores(
        self, weight_OI: torch.Tensor, inputs: FeatureStatistics, positions_GK: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores of the groups.

        Raises:
            NotPositiveDefiniteError: the second moment is not positive definite.
        """
        from loraprune.importance.osscar import osscar_group_scores

        return osscar_group_scores(weight_OI, inputs.moment, positions_GK, self.damping)


@dataclass(frozen=True)
class Random(CriterionConfig):
    """One uniform random score per group.

    Attributes:
        seed: seed of the scores; None takes that of the run.
    """

    name = "random"
    reads_data = False
    seed: int | None = None

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.baselines import RandomCriterion

        return RandomCriterion(seed if self.seed is None else self.seed)


@dataclass(frozen=True)
class Position(CriterionConfig):
    """Scores that fall with a block's number, so the first n whole blocks stay (arXiv 2305.11627)."""

    name = "position"
    reads_data = False

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.baselines import PositionCriterion

        return PositionCriterion()

    def check(self, structure: Structure, *, while_training: bool = True) -> None:
        if "blocks" not in structure.kinds:
            raise ValueError(
                f"The criterion 'position' ranks whole blocks, but the dimensions to prune are "
                f"{', '.join(structure.kinds)}. Choose --dimensions blocks, or another criterion."
            )


@dataclass(frozen=True, kw_only=True)
class Compresso(CriterionConfig):
    """Gates on the groups, learned together with LoRA (arXiv 2310.05015); only the last cut is carried out.

    Attributes:
        learning_rate: learning rate of the gates (Adam).
        multiplier_learning_rate: learning rate of the two Lagrange multipliers (Adam, ascending).
        warmup: share of the steps before the cut over which the target rises from 0 to the ratio.
        ramp: shape of that rise, ``linear`` (as in the paper) or ``cubic`` (fast at first).
        initial_drop: ``log α`` starts at ``log((1 − drop) / drop)``; with a small value the gates are nearly always
            open at first.
        prompt: text put before every row of the data (causal language models only), or ``default`` for the built-in
            one.
    """

    name = "compresso"
    comparable = True
    reads_effective_weights = True
    learns = True
    nested = True
    needs_training = "learns its gates up to the cut"
    learning_rate: float = setting(
        0.5, "learning rate of the gates", within="(0, inf)", why="with less the gates learn nothing"
    )
    multiplier_learning_rate: float = setting(
        0.5, "learning rate of the Lagrange multipliers", within="(0, inf)", why="with less the gates learn nothing"
    )
    warmup: float = setting(
        0.5,
        "share of the steps before the cut over which the target ratio rises",
        within="[0, 1]",
        why="a share of the steps",
    )
    ramp: str = setting("linear", "shape of that rise", choices=RAMPS)
    initial_drop: float = setting(
        0.01, "share of the gates that are closed at the start", within="(0, 1)", why="such as 0.01"
    )
    prompt: str | None = setting(
        None, "text to put before every row, or 'default' for the built-in one", flat="pruning_prompt", shown="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("The pruning prompt is empty. Pass a text, or omit the option.")

    @property
    def prompt_text(self) -> str | None:
        """The prompt in full, or None."""
        return DEFAULT_PROMPT if self.prompt == "default" else self.prompt

    def build(self, seed: int = 0) -> Criterion:
        from loraprune.importance.compresso import CompressoCriterion

        return CompressoCriterion(
            learning_rate=self.learning_rate,
            multiplier_learning_rate=self.multiplier_learning_rate,
            warmup=self.warmup,
            ramp=self.ramp,
            initial_drop=self.initial_drop,
            seed=seed,
        )

    def check(self, structure: Structure, *, while_training: bool = True) -> None:
        from loraprune.importance.evidence.learned_gates import check_gateable

        check_gateable(structure)


@dataclass(frozen=True, kw_only=True)
class Pst(CriterionConfig):
    """Zeroes single weights, by scores that are learned with the adapter (PST, arXiv 2205.11005).

    Attributes:
        rank: rank of the low-rank part U·V of the learned scores.
        low_rank_weight: α1, weight of the low-rank part.
        structured_weight: α2, weight of the row and column parts.
        learning_rate: learning rate of the scores, constant over the run; None takes that of the adapter at each step.
    """

    name = "pst"
    unstructured = True
    nested = True
    needs_training = "learns its scores while the adapter is trained"
    rank: int = setting(8, "rank of the low-rank part of the scores", within="[1, 65536]")
    low_rank_weight: float = setting(1.0, "weight of the low-rank part of the scores (alpha1)", within="[0, inf)")
    structured_weight: float = setting(
        1.0, "weight of the row and column parts of the scores (alpha2)", within="[0, inf)"
    )
    learning_rate: float | None = setting(
        None, "learning rate of the scores", within="(0, inf)", shown="that of the adapter"
    )


GROUP_CRITERIA: dict[str, type[CriterionConfig]] = {
    kind.name: kind
    for kind in (Fisher, LoraGuided, Taylor, Magnitude, Wanda, Flap, Random, Position, Compresso, Osscar)
}
"""Criteria that score groups, by name."""

CRITERIA = tuple(name for name, kind in GROUP_CRITERIA.items() if not kind.too_slow)
"""Names of the criteria that can score groups during training."""
