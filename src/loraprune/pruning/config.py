"""What to prune, when and how: the configuration of :class:`~loraprune.pruning.callback.PruningCallback`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from loraprune.allocation.allocate import ALLOCATIONS
from loraprune.compat.renamed import Renamed, renamed_fields, translated, under_old_names
from loraprune.importance.compresso import CompressoOptions
from loraprune.importance.criterion import Criterion, CriterionOptions, check_protocol
from loraprune.importance.lora import LORA_FORMS
from loraprune.importance.reductions import GROUP_REDUCTIONS
from loraprune.importance.registry import CRITERIA, options_of
from loraprune.importance.taylor_forms import TAYLOR_FORMS
from loraprune.sparsity.pst import PstOptions
from loraprune.structure.widths import HEAD_COUNTS, HeadCounts, check_choice
from loraprune.surgery.refit import REPAIRS

RENAMED = {
    "refit": Renamed(
        "repair",
        lambda refit: {True: "refit", False: "none"}.get(refit, refit),
        lambda repair: {"refit": True, "none": False}.get(repair, repair),
    ),
    "refit_damping": Renamed("damping"),
    "any_head_count": Renamed("head_counts", lambda free: "any" if free else "config", lambda counts: counts == "any"),
}
"""Fields of :class:`PruningConfig` by their old names, which files of runs keep."""


NEED_TRAINING = {
    "lora": "scores groups by the gradients of an adapter that has learnt something",
    "compresso": "learns its gates up to the cut",
    "pst": "learns its scores while the adapter is trained",
}
"""Criteria that cannot score a model before it is tuned, and why."""


def _listed(name: str, value: Any, kinds: tuple[type, ...], what: str) -> tuple[Any, ...]:
    """A list of values of some types as a tuple."""
    if not isinstance(value, (list, tuple)) or not all(type(item) in kinds for item in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of {what}.")
    return tuple(value)


@renamed_fields(**RENAMED)
@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Configuration of structured pruning during training.

    Attributes:
        ratio: sparsity ratio: removed parameters as a share of those of the prunable dimensions, in [0, 1). With 0
            nothing is pruned and the run is plain fine-tuning.
        criterion: ``fisher`` (squared gradient of a gate on each group), ``lora`` (the LoRAPrune paper's), ``taylor``
            (exact gradients of the weights), ``magnitude``, ``wanda``, ``flap``, ``random``, ``compresso`` (learnt
            gates), of whole blocks ``position``; ``pst`` makes single weights zero. Or an object: of ours, such as
            ``Taylor(form="first")`` of :mod:`loraprune.criteria`, or of a class of your own that is a
            :class:`loraprune.criteria.Criterion`.
        lora_form: for the criterion ``lora``: ``squared`` (paper, Eq. 10) or ``absolute`` (the authors' code).
        taylor_form: for the criterion ``taylor``: ``squared`` (the LoRAPrune paper's vanilla criterion) or LLM-Pruner's
            ``first``, ``second``, ``mix`` and ``vectorize``; see :mod:`loraprune.importance.taylor_forms`.
        group_reduction: for ``taylor``, ``lora`` and ``magnitude``: how the scores of the layers of a group become one:
            ``sum``, ``mean``, ``max``, ``prod``, ``first`` or ``last``.
        offload_grads: for ``taylor``: gradients of the weights that wait for the end of a step do so in the machine's
            memory.
        prune_start: fraction of the run before the first cut.
        prune_end: fraction of the run at which the last cut is made; the rest is recovery. With 0 all is cut before
            the first step, by scores on calibration data, as :func:`loraprune.oneshot` cuts; ``osscar`` is a criterion
            then, too. None is 0.3, and 0 where one cut is to be made at a start of 0 (``prune_start=0, cuts=1``).
        cuts: number of cuts between the two, with ratios on a cubic curve; before the first step, in equal parts.
        cut_every: optimizer steps from one cut to the next, in place of a number of cuts.
        allocation: ``balanced`` (one head count and one channel count for all layers, split so that least importance
            is lost), ``uniform`` (heads and channels lose the same share, as in the paper) or ``global`` (groups of all
            layers compete; widths differ from layer to layer, and the result needs our modeling file).
        dimensions: kinds of dimensions to prune (``heads``, ``query_heads``, ``channels``, ``expert_channels``,
            ``experts``, ..., or alone ``blocks`` or ``hidden``); None takes the family's default.
        keep_layers: layers that keep all of their groups; negative ones count from the end, and a text such as
            ``"10%"`` is that share of the layers, from the first on. The ratio stays one of all prunable parameters,
            so that the other layers lose more.
        average_decay: λ of the moving average of scores, in [0, 1).
        average_bias_correction: divide out that the average starts at zero; off as in the paper.
        repair: what is done to each consumer after a cut: ``refit`` (least squares: what it gave before), ``stream``
            (least squares: what makes up the residual stream of the model before the cut), ``bias`` (FLAP's
            compensation, arXiv 2312.11983: the mean of what goes is added to its bias) or ``none``.
        damping: ridge of the least squares as a share of the mean diagonal of the second moment.
        calibration_sequences: training sequences that the repair looks at.
        channel_multiple: FFN widths are rounded to a multiple of this; None chooses by size.
        head_counts: ``config`` keeps to head counts that the model's own config accepts; with ``any``, the result may
            be exported as the related architecture that accepts them (a Llama as a Mistral).
        apply: ``slice`` cuts the tensors; ``mask`` multiplies with zeros during training and cuts at its end.
        seed: of the draw of calibration sequences and of the criterion ``random``. ``loraprune.prune`` and the command
            line set it to the training's seed.
        max_skipped_steps: steps in a row with NaN or Inf that are skipped before training stops.
        pst: how the criterion ``pst`` learns its scores. It makes single weights zero: ``ratio`` is the share of the
            weights that LoRA adapts, with new masks every ``cut_every`` steps (1), and nothing is refitted.
        compresso: how the criterion ``compresso`` learns its gates; it makes the last cut alone, whatever ``cuts``.
    """

    ratio: float = 0.5
    criterion: str | Criterion = "fisher"
    lora_form: str = "squared"
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False
    prune_start: float = 0.1
    prune_end: float = None  # type: ignore[assignment]  # is a number from __post_init__ on
    cuts: int = 5
    cut_every: int | None = None
    allocation: str = "balanced"
    dimensions: tuple[str, ...] | None = None
    keep_layers: tuple[int | str, ...] = ()
    average_decay: float = 0.9
    average_bias_correction: bool = True
    repair: str = "refit"
    damping: float = 0.01
    calibration_sequences: int = 128
    channel_multiple: int | None = None
    head_counts: HeadCounts = "config"
    apply: Literal["slice", "mask"] = "slice"
    seed: int = 42
    max_skipped_steps: int = 5
    compresso: CompressoOptions = field(default_factory=CompressoOptions)
    pst: PstOptions = field(default_factory=PstOptions)

    def __post_init__(self) -> None:
        self._flatten_criterion()
        if self.prune_end is None:
            alone = self.prune_start == 0.0 and self.cuts == 1 and self.cut_every is None and self.apply == "slice"
            first = alone and self.criterion_name not in NEED_TRAINING
            object.__setattr__(self, "prune_end", 0.0 if first else 0.3)
        # Lists, as JSON and YAML have them, compare unequal to tuples.
        if self.dimensions is not None:
            kinds = _listed("dimensions", self.dimensions, (str,), "kinds, such as [heads, channels]")
            object.__setattr__(self, "dimensions", kinds)
            if not kinds:
                raise ValueError("dimensions is empty, so nothing would be pruned; leave it out for the default.")
        if isinstance(self.compresso, Mapping):
            object.__setattr__(self, "compresso", CompressoOptions(**self.compresso))
        if isinstance(self.pst, Mapping):
            object.__setattr__(self, "pst", PstOptions(**self.pst))
        layers = _listed("keep_layers", self.keep_layers, (int, str), "whole numbers and shares, such as [0, -1]")
        object.__setattr__(self, "keep_layers", layers)
        if not 0.0 <= self.ratio < 1.0:
            raise ValueError(f"ratio is {self.ratio}; it must lie in [0, 1): the share of prunable weights that goes.")
        if isinstance(self.criterion, str):
            check_choice("criterion", self.criterion, (*CRITERIA, "osscar", "pst"))
        else:
            check_protocol(self.criterion)
        if self.unstructured:
            self._check_unstructured()
        check_choice("lora_form", self.lora_form, LORA_FORMS)
        check_choice("taylor_form", self.taylor_form, TAYLOR_FORMS)
        check_choice("group_reduction", self.group_reduction, GROUP_REDUCTIONS)
        check_choice("allocation", self.allocation, ALLOCATIONS)
        check_choice("apply", self.apply, ("slice", "mask"))
        if self.pst != PstOptions() and not self.unstructured:
            raise ValueError(
                f"Options of pst were given, and the criterion is {self.criterion!r}. Leave them out, or choose the "
                "criterion 'pst'."
            )
        if not 0.0 <= self.prune_start <= self.prune_end <= 1.0:
            raise ValueError(
                f"prune_start is {self.prune_start} and prune_end {self.prune_end}; both are fractions of the run, "
                "with 0 <= prune_start <= prune_end <= 1."
            )
        self._check_when()
        if self.cuts < 1:
            raise ValueError(f"cuts is {self.cuts}; at least one cut is needed.")
        if self.cut_every is not None and self.cut_every < 1:
            raise ValueError(f"cut_every is {self.cut_every}; at least one step lies between two cuts.")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay is {self.average_decay}; it must lie in [0, 1).")
        check_choice("repair", self.repair, REPAIRS)
        check_choice("head_counts", self.head_counts, HEAD_COUNTS)
        if self.damping < 0.0:
            raise ValueError(f"damping is {self.damping}; it cannot be negative.")
        if self.repairs and self.calibration_sequences < 1:
            raise ValueError(
                "calibration_sequences is below 1: the repair needs at least one. Without it, say repair='none'."
            )
        if self.repairs and self.apply == "mask":
            raise ValueError("A repair needs sliced tensors: say repair='none' (--repair none), or use apply='slice'.")
        if self.channel_multiple is not None and self.channel_multiple < 1:
            raise ValueError(f"channel_multiple is {self.channel_multiple}; it must be at least 1.")
        if self.compresso != CompressoOptions() and self.criterion != "compresso":
            raise ValueError(
                f"Options of compresso (such as a pruning prompt) were given, and the criterion is {self.criterion!r}. "
                "Leave them out, or choose the criterion 'compresso'."
            )
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps is {self.max_skipped_steps}; it cannot be negative.")

    def _flatten_criterion(self) -> None:
        """Take name and options of a criterion object of ours into the fields.

        Raises:
            ValueError: an option is given beside the object, too, and differs.
        """
        found = None if isinstance(self.criterion, str) else options_of(self.criterion)
        if found is None:
            return
        name, options = found
        defaults = {field.name: field.default for field in fields(self)} | {"compresso": CompressoOptions()}
        for option, value in options.items():
            if option != "seed" and getattr(self, option) not in (defaults[option], value):
                raise ValueError(
                    f"{option} is {getattr(self, option)!r}, and the criterion object says {value!r}. Give it once."
                )
            object.__setattr__(self, option, value)
        object.__setattr__(self, "criterion", name)

    def _check_when(self) -> None:
        """Refuse criteria that need training where all is cut before it, and the other way round."""
        if not self.cuts_first:
            if self.criterion == "osscar":
                raise ValueError(
                    "The criterion 'osscar' compares groups by what the repair of their cut leaves over, which is too "
                    "slow for every step. Cut once, before the first step: prune_start=0, cuts=1 (--prune-start 0 "
                    "--cuts 1)."
                )
            return
        why = NEED_TRAINING.get(self.criterion_name)
        if why is not None:
            raise ValueError(
                f"The criterion {self.criterion!r} {why}, and with prune_end=0 all is cut before the first step. "
                "Choose another criterion, or a prune_end above 0."
            )
        if self.apply == "mask":
            raise ValueError("With prune_end=0 all is cut before the first step, where masks have no use. Use slice.")
        if self.cut_every is not None:
            raise ValueError("With prune_end=0 all is cut before the first step: say cuts in place of cut_every.")

    def _check_unstructured(self) -> None:
        """Refuse what speaks of groups where single weights go; what a default says of groups means nothing then."""
        for name, without in (
            ("allocation", "balanced"),
            ("dimensions", None),
            ("channel_multiple", None),
            ("head_counts", "config"),
            ("apply", "slice"),
            ("lora_form", "squared"),
            ("taylor_form", "squared"),
            ("group_reduction", "sum"),
            ("offload_grads", False),
        ):
            if getattr(self, name) != without:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which speaks of groups, and the criterion 'pst' makes single "
                    "weights zero. Leave it out."
                )

    @property
    def criterion_name(self) -> str:
        """Name of the criterion; of one of the user's own, that of its class."""
        return self.criterion if isinstance(self.criterion, str) else type(self.criterion).__name__

    @property
    def cuts_first(self) -> bool:
        """Whether all is cut before the first step."""
        return self.prune_end == 0.0

    @property
    def unstructured(self) -> bool:
        """Whether single weights become zero and no group goes."""
        return self.criterion == "pst"

    @property
    def criterion_options(self) -> CriterionOptions:
        """Which criterion, and how it scores."""
        return CriterionOptions(
            name=self.criterion_name,
            lora_form=self.lora_form,
            taylor_form=self.taylor_form,
            group_reduction=self.group_reduction,
            offload_grads=self.offload_grads,
            seed=self.seed,
            compresso=self.compresso,
            own=None if isinstance(self.criterion, str) else self.criterion,
        )

    @property
    def repairs(self) -> bool:
        """Whether anything is done to the consumers after a cut."""
        return self.repair != "none"

    @property
    def legal_head_counts(self) -> HeadCounts:
        """Head counts that may be chosen: our modeling file, which global allocation needs, takes them all."""
        return "any" if self.allocation == "global" else self.head_counts

    @property
    def free_head_counts(self) -> bool:
        """The old form of :attr:`legal_head_counts`: whether it is ``any``."""
        return self.legal_head_counts == "any"

    def to_saved(self) -> dict[str, Any]:
        """The fields as plain values, under the names that they have in files of runs."""
        return under_old_names(asdict(self) | {"criterion": self.criterion_name}, RENAMED)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> PruningConfig:
        """The reverse of :meth:`to_saved`.

        Raises:
            ValueError: a value is none that the field takes.
        """
        return cls(**translated(values, RENAMED))
