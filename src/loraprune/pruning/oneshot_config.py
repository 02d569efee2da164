"""What is pruned without training, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraprune.allocation.allocate import ALLOCATIONS
from loraprune.compat.renamed import Renamed, renamed_fields, under_old_names
from loraprune.importance.criterion import Criterion, check_options, check_protocol
from loraprune.importance.reductions import GROUP_REDUCTIONS
from loraprune.importance.registry import options_of
from loraprune.importance.taylor_forms import TAYLOR_FORMS
from loraprune.pruning.config import NEED_TRAINING
from loraprune.pruning.oneshot import STRUCTURED_METHODS, WEIGHT_METHODS, ScoreOptions
from loraprune.sparsity.masks import SparsityPattern, parse_pattern
from loraprune.sparsity.methods import METHODS, ORDERS, WITHIN, Evidence, SparsityOptions, evidence_of
from loraprune.structure.dimensions import WHOLE_KINDS
from loraprune.structure.widths import HEAD_COUNTS, HeadCounts, check_choice
from loraprune.surgery.refit import REPAIRS

DEFAULT_STRUCTURED = "osscar"
DEFAULT_SPARSITY = "sparsegpt"
SCORED = ("taylor_form", "group_reduction", "offload_grads")
ONLY_STRUCTURED = ("repair", "allocation", "dimensions", "cuts", "channel_multiple", "head_counts", *SCORED)
ONLY_SPARSE = ("within", "variant", "order", "block_size")
DEFAULTS: dict[str, Any] = {
    "repair": "stream",
    "allocation": "uniform",
    "dimensions": None,
    "cuts": 1,
    "channel_multiple": None,
    "head_counts": "config",
    "taylor_form": "squared",
    "group_reduction": "sum",
    "offload_grads": False,
    "within": None,
    "variant": False,
    "order": "sequential",
    "block_size": 128,
}


RENAMED_ONESHOT = {
    "method": Renamed("criterion"),
    "any_head_count": Renamed(
        "head_counts",
        lambda free: None if free is None else "any" if free else "config",
        lambda counts: None if counts is None else counts == "any",
    ),
}
"""Fields of :class:`OneshotConfig` by their old names, which records keep."""


@renamed_fields(**RENAMED_ONESHOT)
@dataclass(frozen=True, kw_only=True)
class OneshotConfig:
    """What is pruned without training, and how.

    Give ``ratio`` for structured pruning (heads and channels go, the model becomes smaller) or ``sparsity`` for
    unstructured and N:M pruning (weights become zero, the shapes stay).

    Attributes:
        criterion: a name, or an object of :mod:`loraprune.criteria` or of a class of your own that scores groups.
            Structured: ``osscar`` (greedy by the error of the refit; the default), ``fisher``, ``taylor``,
            ``flap``, ``wanda``, ``magnitude``, ``random``, and for whole blocks ``position`` (there, and for the hidden
            size, ``fisher`` is the default); unstructured: ``sparsegpt`` (the default), ``wanda``,
            ``magnitude``, and their masks with SparseGPT's updates, ``wanda+obs`` and ``magnitude+obs``.
        ratio: share of the prunable parameters that goes.
        sparsity: share of the weights of the blocks' linear layers that become zero, such as 0.5, or a pattern N:M such
            as ``"2:4"``: of every M consecutive weights of a row, N.
        repair: structured: ``stream`` (least squares towards the dense model's residual stream; the default),
            ``refit`` (towards each layer's own output), ``bias`` (FLAP's compensation) or ``none``.
        allocation: structured: ``uniform`` (the default), ``balanced`` or ``global``.
        dimensions: structured: kinds that are pruned; None is the family's default.
        cuts: structured: steps in which the ratio is reached; groups are scored anew before each (1).
        channel_multiple: structured: FFN widths are rounded to a multiple of this; None chooses by size.
        head_counts: structured: ``config`` keeps to head counts that the model's own config accepts (the default),
            ``any`` does not.
        taylor_form: of ``taylor``: ``squared`` (the default), ``first``, ``second``, ``mix`` or ``vectorize``.
        group_reduction: of ``taylor`` and ``magnitude``: ``sum`` (the default), ``mean``, ``max``, ``prod``, ``first``
            or ``last`` of the layers of a group.
        offload_grads: of ``taylor``: gradients of the weights are kept in the machine's memory.
        within: of ``wanda`` and ``magnitude``, unstructured: weights are compared within a ``row`` or the ``matrix``;
            None is the criterion's own (``wanda``: row, ``magnitude``: matrix).
        variant: of ``wanda``, unstructured: rows lose the same share of their scores.
        order: of the masks with updates: ``sequential`` (the default) or ``iterative``.
        block_size: of SparseGPT: columns compared with each other and updated together (128).
        keep_layers: blocks that are left alone, counted from the end where negative.
        damping: of refit, ``osscar`` and SparseGPT, as a share of the mean diagonal of the second moment.
        calibration_sequences: rows of the data that are looked at.
        max_length: tokens of a row at most; None is 2048, or the model's context where that is shorter.
        seed: of the draw of calibration rows, of the held-out rows, and of ``random``.
        offload: weights and hidden states stay in the machine's memory, and the accelerator holds one block at a time.
    """

    criterion: str | Criterion | None = None
    ratio: float | None = None
    sparsity: str | float | None = None
    repair: str | None = None
    allocation: str | None = None
    dimensions: tuple[str, ...] | None = None
    cuts: int | None = None
    channel_multiple: int | None = None
    head_counts: HeadCounts | None = None
    taylor_form: str | None = None
    group_reduction: str | None = None
    offload_grads: bool | None = None
    within: str | None = None
    variant: bool | None = None
    order: str | None = None
    block_size: int | None = None
    keep_layers: tuple[int | str, ...] = ()
    damping: float = 0.01
    calibration_sequences: int = 128
    max_length: int | None = None
    seed: int = 42
    offload: bool = False

    def __post_init__(self) -> None:
        self._flatten_criterion()
        self._check_kind()
        methods = STRUCTURED_METHODS if self.structured else METHODS
        if isinstance(self.criterion, str) and self.criterion not in methods:
            self._refuse_criterion(methods)
        for name in ONLY_SPARSE if self.structured else ONLY_STRUCTURED:
            if getattr(self, name) is not None:
                kind, way = ("weights become zero", "--sparsity") if self.structured else ("heads go", "--ratio")
                raise ValueError(f"{name} is an option of pruning where {kind} ({way}). Leave it out.")
        check_choice("repair", self.value("repair"), REPAIRS)
        if self.dimensions and self.spans_blocks and self.value("repair") != "none":
            raise ValueError(
                f"repair is {self.repair!r}, and no layer alone reads the dimension {self.dimensions[0]!r}, so that "
                "there is none to repair. Leave it out."
            )
        check_choice("allocation", self.value("allocation"), ALLOCATIONS)
        check_choice("head_counts", self.value("head_counts"), HEAD_COUNTS)
        check_choice("order", self.value("order"), ORDERS)
        check_choice("taylor_form", self.value("taylor_form"), TAYLOR_FORMS)
        check_choice("group_reduction", self.value("group_reduction"), GROUP_REDUCTIONS)
        if self.structured:
            check_options(self.score_options().criterion, what="criterion")
        self._check_numbers()
        self._check_variants()

    def _flatten_criterion(self) -> None:
        """Take name and options of a criterion object of ours into the fields; check one of the user's own.

        Raises:
            ValueError: it is no criterion, or an option is given beside it, too, and differs.
        """
        if self.criterion is None or isinstance(self.criterion, str):
            return
        found = options_of(self.criterion)
        if found is None:
            check_protocol(self.criterion)
            if self.sparsity is not None:
                raise ValueError(
                    f"A sparsity was given, and a criterion of your own, such as {self.name}, scores groups: give a "
                    "ratio instead."
                )
            if self.ratio is None:
                object.__setattr__(self, "ratio", 0.5)
            return
        name, options = found
        for option, value in options.items():
            if option in SCORED:
                if getattr(self, option) not in (None, value):
                    raise ValueError(
                        f"{option} is {getattr(self, option)!r}, and the criterion object says {value!r}. Give it once."
                    )
                object.__setattr__(self, option, value)
        object.__setattr__(self, "criterion", name)

    def _check_kind(self) -> None:
        if self.ratio is not None and self.sparsity is not None:
            raise ValueError(
                f"ratio is {self.ratio:g} and sparsity {self.sparsity}: with a ratio heads and channels go, with a "
                "sparsity weights become zero. Give one of them."
            )
        if self.ratio is None and self.sparsity is None:
            both = self.criterion in STRUCTURED_METHODS and self.criterion in METHODS
            if self.criterion is None or both:
                what = "" if self.criterion is None else f" {self.criterion} can do both."
                raise ValueError(
                    f"Say how much is to go: a ratio (heads and channels go) or a sparsity (weights become zero).{what}"
                )
            # Only one kind of pruning has the criterion.
            object.__setattr__(self, "ratio" if self.criterion in STRUCTURED_METHODS else "sparsity", 0.5)
        if self.ratio is not None and not 0.0 < self.ratio < 1.0:
            raise ValueError(f"ratio is {self.ratio:g}; it must lie between 0 and 1: the share of weights that goes.")
        if self.sparsity is not None:
            parse_pattern(self.sparsity)

    def _refuse_criterion(self, methods: Sequence[str]) -> None:
        other = METHODS if self.structured else STRUCTURED_METHODS
        if self.criterion in other:
            given, wanted = ("a ratio", "sparsity") if self.structured else ("a sparsity", "ratio")
            what = "weights become zero" if self.structured else "heads and channels go"
            raise ValueError(
                f"{given.capitalize()} was given, and the criterion {self.criterion!r} is one in which {what}: give a "
                f"{wanted} instead, or choose one of {', '.join(methods)}."
            )
        if self.criterion in NEED_TRAINING:
            raise ValueError(
                f"The criterion {self.criterion!r} {NEED_TRAINING[str(self.criterion)]}, and nothing is trained here. "
                f"Use loraprune prune, or choose one of {', '.join(methods)}."
            )
        known = ", ".join(dict.fromkeys((*STRUCTURED_METHODS, *METHODS)))
        raise ValueError(f"There is no criterion {self.criterion!r}; choose one of {known}.")

    def _check_numbers(self) -> None:
        for name in ("dimensions", "keep_layers"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is the text {getattr(self, name)!r}; it must be a list.")
        object.__setattr__(self, "keep_layers", tuple(self.keep_layers))
        if self.dimensions is not None:
            object.__setattr__(self, "dimensions", tuple(self.dimensions))
        for name in ("cuts", "channel_multiple", "block_size", "calibration_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping is {self.damping:g}; it must lie in [0, 1): a share of the mean diagonal.")

    def _check_variants(self) -> None:
        if self.variant and (self.name != "wanda" or self.pattern.m is not None):
            raise ValueError("variant is a way of wanda to spread a sparsity without a pattern. Leave it out.")
        if self.order is not None and not self.name.endswith("+obs"):
            raise ValueError("order is an option of the criteria magnitude+obs and wanda+obs. Leave it out.")
        if self.within is not None:
            check_choice("within", self.within, WITHIN)
            if self.name == "sparsegpt" or self.value("order") == "iterative" or self.variant:
                raise ValueError(
                    "within is an option of wanda and magnitude masks that are chosen at once. Leave it out."
                )
        if self.block_size is not None and evidence_of(self.name) is not Evidence.MOMENT:
            raise ValueError(
                f"block_size is an option of criteria with updates, and {self.name} has none. Leave it out."
            )

    @property
    def spans_blocks(self) -> bool:
        """Whether whole blocks go, or parts of the hidden size: no layer alone reads these."""
        return any(kind in WHOLE_KINDS for kind in self.dimensions or ())

    def value(self, name: str) -> Any:
        """What an option is, given or by default."""
        given = getattr(self, name)
        if given is None and name == "repair" and self.spans_blocks:
            return "none"
        return DEFAULTS[name] if given is None else given

    @property
    def structured(self) -> bool:
        """Whether heads and channels go; otherwise weights become zero."""
        return self.sparsity is None

    @property
    def name(self) -> str:
        """Of the criterion, given or by default."""
        if self.criterion is None and self.structured and self.spans_blocks:
            return "fisher"
        if self.criterion is not None and not isinstance(self.criterion, str):
            return type(self.criterion).__name__
        return self.criterion or (DEFAULT_STRUCTURED if self.structured else DEFAULT_SPARSITY)

    @property
    def pattern(self) -> SparsityPattern:
        """What becomes zero, where something does."""
        assert self.sparsity is not None
        return parse_pattern(self.sparsity)

    @property
    def scores_need_data(self) -> bool:
        """Whether the criterion looks at calibration data."""
        if self.structured:
            return self.name not in WEIGHT_METHODS
        return evidence_of(self.name) is not Evidence.NOTHING

    @property
    def needs_data(self) -> bool:
        """Whether anything looks at calibration data."""
        return self.scores_need_data or (self.structured and self.value("repair") != "none")

    def score_options(self) -> ScoreOptions:
        """For structured pruning."""
        return ScoreOptions(
            method=self.name,
            damping=self.damping,
            seed=self.seed,
            own=None if self.criterion is None or isinstance(self.criterion, str) else self.criterion,
            **{name: self.value(name) for name in SCORED},
        )

    def sparsity_options(self) -> SparsityOptions:
        """For single weights."""
        return SparsityOptions(
            method=self.name,
            pattern=self.pattern,
            within=self.value("within"),
            variant=self.value("variant"),
            order=self.value("order"),
            damping=self.damping,
            block_size=self.value("block_size"),
        )

    def settings(self) -> dict[str, Any]:
        """As plain values, under the names that they have in records: what was in force, defaults included."""
        values: dict[str, Any] = {"criterion": self.name}
        values |= {"ratio": self.ratio} if self.structured else {"sparsity": str(self.sparsity)}
        values |= {name: self.value(name) for name in (ONLY_STRUCTURED if self.structured else ONLY_SPARSE)}
        further = ("keep_layers", "damping", "calibration_sequences", "max_length", "seed", "offload")
        return under_old_names(values | {name: getattr(self, name) for name in further}, RENAMED_ONESHOT)
