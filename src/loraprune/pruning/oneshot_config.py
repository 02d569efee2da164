"""Configuration of pruning without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar, NoReturn

from loraprune.allocation.target import Target
from loraprune.compat.renamed import Renamed, renamed_fields, under_old_names
from loraprune.importance.configs import GROUP_CRITERIA, Pst
from loraprune.importance.criterion_config import CriterionConfig, own_criterion
from loraprune.options.field import SEEDS, setting
from loraprune.options.flat import Flat, Part
from loraprune.options.near import did_you_mean
from loraprune.sparsity.configs import ZEROING_METHODS, Evidence, WandaMask, ZeroingMethod
from loraprune.sparsity.pattern import SparsityPattern, parse_pattern
from loraprune.structure.dimensions import WHOLE_KINDS
from loraprune.surgery.repairs import REPAIRS, LeastSquares, Repair

RENAMED_ONESHOT = {
    "method": Renamed("criterion"),
    "any_head_count": Renamed(
        "head_counts",
        lambda free: None if free is None else "any" if free else "config",
        lambda counts: None if counts is None else counts == "any",
    ),
}
"""Fields of :class:`OneshotConfig` by their old names, which saved records keep."""

_OURS = {name: kind for name, kind in GROUP_CRITERIA.items() if not kind.needs_training}
ONESHOT_CRITERIA = {"osscar": _OURS["osscar"]} | _OURS
"""Criteria that need no training, by name; the first is the default."""

NORM_STEPS = 32
"""Default of :attr:`OneshotConfig.norm_steps` with a least-squares repair."""

_EITHER = ", ".join(dict.fromkeys((*ONESHOT_CRITERIA, *ZEROING_METHODS)))


def _refusals(
    kinds: Mapping[str, Any], others: Mapping[str, Any], given: str, wanted: str, what: str
) -> dict[str, str]:
    """Return messages for criteria of the other kind of pruning and for those that need training."""
    found = {
        name: f"You passed a {given}, and with the criterion {name!r} {what}. Pass a {wanted} instead, or choose one "
        f"of {', '.join(kinds)}."
        for name in others
        if name not in kinds
    }
    trained: dict[str, type[CriterionConfig]] = {**GROUP_CRITERIA, "pst": Pst}
    return found | {
        name: f"The criterion {name!r} {kind.needs_training}, and oneshot does not train. Use loraprune prune, or "
        f"choose one of {', '.join(kinds)}."
        for name, kind in trained.items()
        if kind.needs_training
    }


def _refuse_own_criterion(criterion: object) -> NoReturn:
    name = type(criterion).__name__
    raise ValueError(f"You passed a sparsity, and your own criterion {name} scores groups. Pass a ratio instead.")


@dataclass(frozen=True, init=False)
class _Calibrated(Flat):
    """Options of both kinds of pruning without training."""

    calibration_sequences: int = setting(128, "rows of calibration data", within="[1, 1000000]")
    max_length: int | None = setting(None, "tokens in a row", within="[1, inf)", shown="2048, or the model's context")
    seed: int = setting(42, "random seed", within=SEEDS)
    offload: bool = setting(False, "keep the model in CPU memory, with one block at a time on the accelerator")

    @property
    def name(self) -> str:
        """Name of the criterion."""
        name: str = self.criterion.name
        return name

    def settings(self) -> dict[str, Any]:
        """Return all options, with defaults, as plain values under the names that records use."""
        values = {"criterion": self.name} | self.flat()
        if "sparsity" in values:
            values["sparsity"] = str(values["sparsity"])
        return under_old_names(values, RENAMED_ONESHOT)


@renamed_fields(method=RENAMED_ONESHOT["method"])
@dataclass(frozen=True, init=False)
class SparseConfig(_Calibrated):
    """Configuration of sparsity: weights of the blocks' linear layers become zero, and the shapes stay.

    Example::

        SparseConfig(sparsity="2:4")
        SparseConfig(sparsity=0.5, criterion="wanda", variant=True)

    Attributes:
        criterion: ``sparsegpt`` (the default), ``wanda``, ``magnitude``, and their masks with SparseGPT's updates,
            ``wanda+obs`` and ``magnitude+obs``; or an object of :mod:`loraprune.sparsity.configs`. Flat: ``within``,
            ``variant``, ``order``, ``block_size``, ``damping``.
        sparsity: share of the weights to set to zero, such as 0.5, or a pattern N:M such as ``"2:4"``: N of every M
            consecutive weights of a row.
        keep_layers: blocks to leave unpruned; negative numbers count from the end.
        calibration_sequences: number of rows of calibration data.
        max_length: maximum number of tokens in a row; None is 2048, or the model's context if that is shorter.
        seed: seed of the draw of calibration rows and held-out rows.
        offload: keep weights and hidden states in CPU memory, and one block at a time on the accelerator.
    """

    criterion: ZeroingMethod = setting(
        None, "score that decides which weights become zero: sparsegpt, wanda, magnitude, wanda+obs or magnitude+obs"
    )
    sparsity: str | float = setting(
        0.5,
        "share of the weights to set to zero, or a pattern N:M such as 2:4 (N of every M weights in a row)",
    )
    keep_layers: tuple[int | str, ...] = setting(
        (), "layers to leave unpruned, such as 0-3,-1, or 10% for the first tenth", shown="none"
    )

    parts: ClassVar = {
        "criterion": Part(
            ZEROING_METHODS,
            adopt=_refuse_own_criterion,
            refused=_refusals(ZEROING_METHODS, ONESHOT_CRITERIA, "sparsity", "ratio", "heads and channels are removed"),
        )
    }

    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(_ONLY_GROUPS & values.keys()):
            if values[name] is not None:
                raise ValueError(f"{name} is an option for removing heads and channels (--ratio). Leave it out.")
        return {name: value for name, value in values.items() if value is not None and name not in _ONLY_GROUPS}

    def _check(self) -> None:
        pattern = self.pattern
        if isinstance(self.criterion, WandaMask) and self.criterion.variant and pattern.m is not None:
            raise ValueError("variant is an option of wanda for a sparsity without a pattern. Leave it out.")

    @property
    def pattern(self) -> SparsityPattern:
        """Pattern of the zeros."""
        return parse_pattern(self.sparsity)

    @property
    def needs_data(self) -> bool:
        """Whether the criterion needs calibration data."""
        return self.criterion.evidence is not Evidence.NOTHING


@renamed_fields(**RENAMED_ONESHOT)
@dataclass(frozen=True, init=False)
class OneshotConfig(_Calibrated):
    """Configuration of pruning heads and channels without training; a ``sparsity`` makes a SparseConfig instead.

    Example::

        OneshotConfig(ratio=0.2)
        OneshotConfig(target=Target(ratio=0.2), criterion=Taylor(form="first"), repair=Refit(damping=0.1), cuts=4)
        OneshotConfig(sparsity="2:4")  # a SparseConfig(sparsity="2:4")

    Attributes:
        target: what to prune, how much, and how that is spread. Flat: ``ratio``, ``widths``, ``allocation``,
            ``dimensions``, ``keep_layers``, ``channel_multiple``, ``head_counts``; see
            :class:`~loraprune.allocation.target.Target`.
        criterion: ``osscar`` (greedy by the error of the refit; the default), ``fisher``, ``taylor``, ``flap``,
            ``wanda``, ``magnitude``, ``random``, and for whole blocks ``position``. For whole blocks and the hidden
            size the default is ``fisher``. Or an object of :mod:`loraprune.criteria` or of a class of your own. Flat:
            ``taylor_form``, ``group_reduction``, ``offload_grads``, ``damping`` (of ``osscar``).
        repair: ``stream`` (least squares fit to the dense model's residual stream; the default), ``stream+readers``
            (also fits the layers that read the stream), ``refit`` (fit to each layer's own output), ``bias`` (FLAP's
            compensation) or ``none``, or an object of :mod:`loraprune.repairs`. Flat: ``damping``.
        cuts: number of steps to the ratio; groups are scored again before each.
        norm_steps: number of optimizer steps that tune the norms after the cut, so that the predictions follow those of
            the dense model; each on about 2,048 tokens of calibration data (:mod:`loraprune.surgery.tune_norms`). None
            means 32 with a least-squares repair, otherwise 0. No other weights change. The norms keep their values if
            this does not help on rows that are held back.
        calibration_sequences: number of rows of calibration data.
        max_length: maximum number of tokens in a row; None is 2048, or the model's context if that is shorter.
        seed: seed of the draw of calibration rows and held-out rows, and of ``random``.
        offload: keep weights and hidden states in CPU memory, and one block at a time on the accelerator.

    Raises:
        ValueError: neither a ratio nor a sparsity is given, or both are.
    """

    target: Target = field(default_factory=Target)
    criterion: CriterionConfig = setting(
        None,
        "score that decides what to remove: osscar, fisher, taylor, flap, wanda, magnitude, random, for blocks also "
        "position; with --sparsity: sparsegpt, wanda, magnitude, wanda+obs, magnitude+obs",
        shown="osscar; fisher for blocks and the hidden size; sparsegpt with --sparsity",
    )
    repair: Repair = setting(
        None,
        "fit of the remaining weights after a cut: stream (to the residual stream), stream+readers, refit (to each "
        "layer's output), bias (FLAP) or none",
    )
    cuts: int = setting(1, "number of cuts; groups are scored again before each", within="[1, 1000000]")
    norm_steps: int | None = setting(
        None,
        "optimizer steps that tune the norms towards the predictions of the dense model after the cut, on calibration "
        "data",
        within="[0, 1000000]",
        shown=f"{NORM_STEPS} with a least-squares repair, otherwise 0",
    )

    parts: ClassVar = {
        "target": Part({"target": Target}),
        "criterion": Part(
            ONESHOT_CRITERIA,
            adopt=own_criterion,
            refused=_refusals(ONESHOT_CRITERIA, ZEROING_METHODS, "ratio", "sparsity", "weights become zero"),
        ),
        "repair": Part({"stream": REPAIRS["stream"]} | REPAIRS),
    }

    def __new__(cls, **values: Any) -> Any:
        """Make a :class:`SparseConfig` if the options ask for sparsity."""
        return SparseConfig(**values) if cls is OneshotConfig and _is_sparse(values) else object.__new__(cls)

    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in values.items() if name not in _ONLY_ZEROS or value is not None}
        for name in sorted(_ONLY_ZEROS & values.keys()):
            raise ValueError(f"{name} is an option for setting weights to zero (--sparsity). Leave it out.")
        target, ratio, criterion = (values.get(name) for name in ("target", "ratio", "criterion"))
        if target is None and ratio is None and criterion is None and values.get("widths") is None:
            raise ValueError(_how_much())
        if isinstance(ratio, Real) and not 0.0 < float(ratio) < 1.0:
            raise ValueError(f"ratio is {ratio:g}; it must lie between 0 and 1: the share of weights to remove.")
        kinds = values.get("dimensions") or (target.dimensions if isinstance(target, Target) else None) or ()
        whole = {}
        if any(kind in WHOLE_KINDS for kind in kinds):
            whole = {"criterion": "fisher", "repair": "stream" if tuple(kinds) == ("blocks",) else "none"}
        return {**values, **{name: default for name, default in whole.items() if values.get(name) is None}}

    def _usual(self) -> dict[str, Any]:
        return {"ratio": self.target.ratio, "criterion": self.criterion}

    def _check(self) -> None:
        if not self.target.ratio > 0.0:
            raise ValueError(
                f"ratio is {self.target.ratio:g}; it must lie between 0 and 1: the share of weights to remove."
            )
        if self.norm_steps is None:
            hidden = "hidden" in (self.target.dimensions or ())
            steps = NORM_STEPS if isinstance(self.repair, LeastSquares) and not hidden else 0
            object.__setattr__(self, "norm_steps", steps)
        if self.target.allocation is None:
            allocation = "measured" if self.repair.reads_data and not self.spans_blocks else "uniform"
            object.__setattr__(self, "target", replace(self.target, allocation=allocation))
        if self.target.allocation == "measured" and not self.repair.reads_data:
            raise ValueError(
                "allocation is 'measured', which judges widths by the repaired model, and there is no repair. Use "
                "'uniform' or 'balanced', or choose another repair."
            )
        if self.spans_blocks and self.repair.reads_data:
            kinds = self.target.dimensions or ()
            if kinds != ("blocks",):
                raise ValueError(
                    f"repair is {self.repair.name!r}, which does not support the dimension {kinds[0]!r}: no single "
                    "layer reads it. Leave it out."
                )
            if type(self.repair) is not REPAIRS["stream"]:
                raise ValueError(
                    f"repair is {self.repair.name!r}, which does not support whole blocks. Use 'stream', which fits "
                    "the layers around the removed blocks, or 'none'."
                )

    @property
    def spans_blocks(self) -> bool:
        """Whether whole blocks or parts of the hidden size are removed; no single layer reads these."""
        return any(kind in WHOLE_KINDS for kind in self.target.dimensions or ())

    @property
    def needs_data(self) -> bool:
        """Whether the criterion, the repair or the tuning of norms needs calibration data."""
        return self.criterion.reads_data or self.repair.reads_data or bool(self.norm_steps)


_ONLY_GROUPS = {name for name in OneshotConfig.flat_names() if name not in SparseConfig.flat_names()} | {"target"}
_ONLY_ZEROS = {name for name in SparseConfig.flat_names() if name not in OneshotConfig.flat_names()}


def _is_sparse(values: Mapping[str, Any]) -> bool:
    """Whether the options ask for sparsity; a copied object has no options yet.

    Raises:
        ValueError: neither a ratio nor a sparsity is given, or both are.
    """
    ratio, sparsity = values.get("ratio"), values.get("sparsity")
    criterion = values.get("criterion", values.get("method"))
    if ratio is not None and sparsity is not None:
        raise ValueError(
            f"ratio is {ratio} and sparsity is {sparsity}. A ratio removes heads and channels, a sparsity sets weights "
            "to zero. Pass one of them."
        )
    if sparsity is not None:
        return True
    others = (values.get("target"), values.get("widths"))
    if ratio is not None or any(other is not None for other in others) or isinstance(criterion, CriterionConfig):
        return False
    if isinstance(criterion, ZeroingMethod):
        return True
    if not isinstance(criterion, str):
        return False
    if criterion in ONESHOT_CRITERIA and criterion in ZEROING_METHODS:
        raise ValueError(_how_much(f" {criterion} can do both."))
    if criterion in (refused := OneshotConfig.parts["criterion"].refused) and criterion not in ZEROING_METHODS:
        raise ValueError(refused[criterion])
    if criterion not in ONESHOT_CRITERIA and criterion not in ZEROING_METHODS:
        near = did_you_mean(criterion, (*ONESHOT_CRITERIA, *ZEROING_METHODS))
        raise ValueError(f"There is no criterion {criterion!r}; choose one of {_EITHER}.{near}")
    return criterion in ZEROING_METHODS


def _how_much(what: str = "") -> str:
    return f"Pass a ratio (removes heads and channels) or a sparsity (sets weights to zero).{what}"
