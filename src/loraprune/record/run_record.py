"""The record of a run, ``pruning.json``: what was done, on what, and how the run went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprune.record import atomic
from loraprune.record.checksums import checksums
from loraprune.record.codec import LEFT_OUT, decode, encode, read_json
from loraprune.record.report_data import Cut, EvaluationPoint, HistoryPoint

RECORD_FILE = "pruning.json"
RECORD_VERSION = 1
"""Of the form of the file. A record without a version is older than the first, and :func:`upgraded` on reading."""


@dataclass(frozen=True, kw_only=True)
class ModelMeasures:
    """What was measured of one model; None where it was not, NaN where the figure was not finite.

    Attributes:
        parameters: of the model; ``nonzero``: those that are not zero, of a sparse model; ``bytes``: of its weights.
        perplexity: on held-out rows, as are ``bits_per_byte``, ``loss`` (nats), ``accuracy`` and ``exact_match``.
        num_tokens: that were predicted, in segments of ``segment_length``.
        num_not_finite: of ``num_segments``, those whose loss was not finite; None where all were.
        num_examples: that were classified; ``num_generated``: targets that were written.
        data_fingerprint: hash of what the model was called with for these figures; see
            :mod:`loraprune.metrics.fingerprint`.
        completion: how the model goes on from the run's prompt.
        latency_ms: of a forward pass on ``latency_tokens`` or on ``latency_input``.
    """

    parameters: int | None = field(default=None, metadata=LEFT_OUT)
    bytes: int | None = field(default=None, metadata=LEFT_OUT)
    perplexity: float | None = field(default=None, metadata=LEFT_OUT)
    bits_per_byte: float | None = field(default=None, metadata=LEFT_OUT)
    loss: float | None = field(default=None, metadata=LEFT_OUT)
    accuracy: float | None = field(default=None, metadata=LEFT_OUT)
    exact_match: float | None = field(default=None, metadata=LEFT_OUT)
    num_tokens: int | None = field(default=None, metadata=LEFT_OUT)
    segment_length: int | None = field(default=None, metadata=LEFT_OUT)
    num_not_finite: int | None = field(default=None, metadata=LEFT_OUT)
    num_segments: int | None = field(default=None, metadata=LEFT_OUT)
    num_examples: int | None = field(default=None, metadata=LEFT_OUT)
    num_generated: int | None = field(default=None, metadata=LEFT_OUT)
    data_fingerprint: str | None = field(default=None, metadata=LEFT_OUT)
    completion: str | None = field(default=None, metadata=LEFT_OUT)
    latency_ms: float | None = field(default=None, metadata=LEFT_OUT)
    latency_tokens: int | None = field(default=None, metadata=LEFT_OUT)
    latency_input: str | None = field(default=None, metadata=LEFT_OUT)
    nonzero: int | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class DimensionRecord:
    """A prunable dimension of the model before the run; ``layer`` is None of one that no layer has to itself."""

    name: str
    kind: str
    layer: int | None
    groups: int


@dataclass(frozen=True, kw_only=True)
class TriedWidths:
    """Groups that the widest layer keeps, and has ``of`` itself, by kind, where such widths were tried before the cut.

    Attributes:
        divergence: from the dense model, in nats a token; None where the trial gave NaN. ``even``: see WidthTrial.
    """

    widths: Mapping[str, int]
    of: Mapping[str, int]
    divergence: float | None
    even: bool = False


@dataclass(frozen=True, kw_only=True)
class RepairError:
    """What a cut did to the output of one consumer: relative error without a repair (``cut``) and with it.

    Attributes:
        step: after which the cut was made; 0 without training, where ``cut_number`` counts the cuts from 1.
        dimension: that was cut; ``kind`` and ``layer``: its.
    """

    step: int
    cut_number: int | None = field(default=None, metadata=LEFT_OUT)
    dimension: str
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


@dataclass(frozen=True, kw_only=True)
class PruningCourse:
    """How groups were removed.

    Attributes:
        ratio: removed share of the parameters of the prunable dimensions; ``target_ratio``: that was asked for.
        parameters_before: of the whole model; ``parameters``: of the result.
        prunable_parameters_before: of the prunable dimensions; ``prunable_parameters``: after the run.
        repair: of a run without training; ``widths``: likewise, groups left by kind, layer by layer.
        cuts: of a run with training, in the order made.
        refit_errors: of each consumer at each cut.
        trials: widths that were tried, best first; those of the first one were taken.
        dimensions: what the plan is of.
    """

    ratio: float
    target_ratio: float
    parameters_before: int
    parameters: int
    prunable_parameters_before: int
    prunable_parameters: int
    repair: str | None = field(default=None, metadata=LEFT_OUT)
    widths: Mapping[str, tuple[int, ...]] | None = field(default=None, metadata=LEFT_OUT)
    cuts: tuple[Cut, ...] | None = field(default=None, metadata=LEFT_OUT)
    refit_errors: tuple[RepairError, ...] = ()
    trials: tuple[TriedWidths, ...] = ()
    dimensions: tuple[DimensionRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ZeroCounts:
    """Zeros of the blocks' linear layers: their share, how many of how many weights, and shares by kind of matrix."""

    share: float
    zeros: int
    weights: int
    kinds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """One growth of the masks of PST: the share of zeros after it."""

    step: int
    ratio: float


@dataclass(frozen=True, kw_only=True)
class MatrixRecord:
    """What became of a matrix.

    Attributes:
        name: of the matrix in the model; ``layer``: index of its block; ``kind``: its place in the block.
        weights: how many it has; ``zeros``: how many of them are zero now; ``zeros_before``: were zero before;
            ``seconds``: that it took, without the calibration data's way through the block.
        error: squared error of its outputs as a share of the squared outputs, where the method knows it.
        damping: that its updates needed, where the method has any.
    """

    name: str
    layer: int
    kind: str
    weights: int
    zeros: int
    zeros_before: int
    seconds: float
    error: float | None = None
    damping: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True, kw_only=True)
class SparsityCourse:
    """How weights became zero (``pattern`` to ``matrices``), or how many were zero all the time.

    Attributes:
        pattern: ``"2:4"``, ``"50%"``; None of a run that tunes alone.
        target: share of zeros that was asked for; ``reached``: that there is.
        zeros: of the ``weights`` that could become zero.
        masks: of PST; ``matrices``: of a run without training.
        before: zeros of the blocks' linear layers before a run with training; ``after``: after it.
    """

    pattern: str | None = field(default=None, metadata=LEFT_OUT)
    target: float | None = field(default=None, metadata=LEFT_OUT)
    reached: float | None = field(default=None, metadata=LEFT_OUT)
    zeros: int | None = field(default=None, metadata=LEFT_OUT)
    weights: int | None = field(default=None, metadata=LEFT_OUT)
    masks: tuple[MaskRecord, ...] | None = field(default=None, metadata=LEFT_OUT)
    matrices: tuple[MatrixRecord, ...] | None = field(default=None, metadata=LEFT_OUT)
    before: ZeroCounts | None = field(default=None, metadata=LEFT_OUT)
    after: ZeroCounts | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Measures of the models, and the course of the run.

    Attributes:
        dense: the model before the run; ``pruned``: the result; ``unrecovered``: cut alike, and nothing else done.
        calibration: how much a run without training looked at; ``data``: what became of the rows.
        pruning: of a run that removes groups; ``sparsity``: of one that makes or finds zeros.
        steps: training steps; ``history``: those logged; ``evaluations``: on held-out rows; ``skipped_steps``: NaN.
        seconds: of the whole run; ``phases``: by phase, in their order.
    """

    dense: ModelMeasures = ModelMeasures()
    pruned: ModelMeasures = ModelMeasures()
    unrecovered: ModelMeasures | None = field(default=None, metadata=LEFT_OUT)
    calibration: Mapping[str, object] | None = field(default=None, metadata=LEFT_OUT)
    pruning: PruningCourse | None = field(default=None, metadata=LEFT_OUT)
    sparsity: SparsityCourse | None = field(default=None, metadata=LEFT_OUT)
    steps: int | None = field(default=None, metadata=LEFT_OUT)
    history: tuple[HistoryPoint, ...] | None = field(default=None, metadata=LEFT_OUT)
    evaluations: tuple[EvaluationPoint, ...] | None = field(default=None, metadata=LEFT_OUT)
    skipped_steps: tuple[int, ...] | None = field(default=None, metadata=LEFT_OUT)
    data: Mapping[str, object] | None = field(default=None, metadata=LEFT_OUT)
    seconds: float | None = field(default=None, metadata=LEFT_OUT)
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a run as they were, by part; which there are depends on the recipe and on the criterion."""

    pruning: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    recovery: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    oneshot: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    base: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    lora: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    distillation: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    training: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)

    @property
    def recipe(self) -> str | None:
        """``"prune"``, ``"oneshot"`` or ``"recover"``; None where there are no settings."""
        named = {"oneshot": self.oneshot, "recover": self.recovery, "prune": self.pruning}
        return next((name for name, part in named.items() if part), None)

    @property
    def method(self) -> str | None:
        """Name of the criterion."""
        return (self.oneshot or {}).get("method") or (self.pruning or {}).get("criterion")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What speed depends on."""

    platform: str | None = field(default=None, metadata=LEFT_OUT)
    processor: str | None = field(default=None, metadata=LEFT_OUT)
    cpus: int | None = field(default=None, metadata=LEFT_OUT)
    threads: int | None = field(default=None, metadata=LEFT_OUT)
    accelerator: str | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class History:
    """What a record keeps of the run before it, so that a further run does not lose it.

    Attributes:
        base_model: that the run began with.
        created: time of the run; ``recipe``: ``"prune"``, ``"oneshot"`` or ``"recover"``.
        method: name of the criterion.
        ratio: removed share; ``pattern`` and ``sparsity``: of a sparse model, its zeros and their share.
        base_pruning: the same of the run before that.
    """

    base_model: str | None = field(default=None, metadata=LEFT_OUT)
    created: str | None = field(default=None, metadata=LEFT_OUT)
    recipe: str | None = field(default=None, metadata=LEFT_OUT)
    method: str | None = field(default=None, metadata=LEFT_OUT)
    ratio: float | None = field(default=None, metadata=LEFT_OUT)
    pattern: str | None = field(default=None, metadata=LEFT_OUT)
    sparsity: float | None = field(default=None, metadata=LEFT_OUT)
    base_pruning: History | None = field(default=None, metadata=LEFT_OUT)

    def in_words(self) -> str:
        """``"2:4 sparse by `wanda`"``, ``"50% pruned by `fisher`"``; empty where nothing is known."""
        method = f" by `{self.method}`" if self.method else ""
        if self.pattern is not None:
            return f"{self.pattern} sparse{method}"
        if self.ratio:
            return f"{self.ratio:.0%} pruned{method}"
        before = self.base_pruning
        if before not in (None, History()) and (before.pattern is None or self.sparsity):
            return before.in_words()
        return f"{self.sparsity:.0%} sparse" if self.sparsity else ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything about a run; ``pruning.json`` is a dump of it.

    Attributes:
        version: of the form of the file.
        base_model: name of the model that the run began with, or its folder.
        task: name of what the model is made for.
        created: time, ISO 8601.
        command: the command line, where there was one.
        settings: of the run.
        metrics: measures, and the course of the run.
        plan: groups that stayed, by name of the prunable dimension.
        versions: of libraries.
        machine: that it ran on.
        recipe: the options as ``--config`` takes them.
        base_pruning: how the model that the run began with was made, where that is known.
        checksums: of the weight files, by name: SHA-256; None of older records.
    """

    version: int = RECORD_VERSION
    base_model: str = ""
    task: str = ""
    created: str = ""
    command: str | None = None
    settings: Settings = Settings()
    metrics: RunMetrics = RunMetrics()
    plan: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Machine = Machine()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    base_pruning: History | None = field(default=None, metadata=LEFT_OUT)
    checksums: Mapping[str, str] | None = field(default=None, metadata=LEFT_OUT)

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """Read the record of a run.

        Args:
            folder: of the run, or the file itself.

        Raises:
            ValueError: there is none, or it is damaged, no record or one of a later version.
        """
        path = Path(folder)
        path = path / RECORD_FILE if path.is_dir() else path
        try:
            return decode(cls, upgraded(read_json(path)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no record of a run: {error}") from error

    def write(self, folder: Path) -> RunRecord:
        """Write the record into the folder of a run, as strict JSON; NaN and infinities become ``null``.

        Returns:
            The record as written: with the checksums of the weight files that are there.
        """
        written = replace(self, checksums=checksums(folder) or None)
        text = json.dumps(encode(written), indent=2, allow_nan=False)
        atomic.write_text(folder / RECORD_FILE, text)
        return written

    def summary(self) -> History:
        """Method and amount, and what the record itself says of its base."""
        pruning, sparsity = self.metrics.pruning, self.metrics.sparsity or SparsityCourse()
        after = None if sparsity.after is None else sparsity.after.share
        return History(
            base_model=self.base_model or None,
            created=self.created or None,
            recipe=self.settings.recipe,
            method=self.settings.method,
            ratio=None if pruning is None else pruning.ratio,
            pattern=sparsity.pattern,
            sparsity=after if sparsity.reached is None else sparsity.reached,
            base_pruning=self.base_pruning,
        )


def upgraded(values: Any) -> Any:
    """Parsed JSON of a record as one of today's version would have it.

    Records without a version have the form of the first. Those of :func:`loraprune.save_pruned` and of
    :func:`loraprune.save` have no measures, and the course of pruning beside the settings. Older ones may lack what the
    defaults of the fields stand for; what is null there was not known. The oldest name no task: there was one alone.

    Raises:
        ValueError: it is a record of a later version, or none.
    """
    if not isinstance(values, dict):
        return values
    version = values.get("version", RECORD_VERSION)
    if version != RECORD_VERSION:
        raise ValueError(
            f"it has version {version!r} of the form of records, and this loraprune reads version {RECORD_VERSION}. "
            "Install the loraprune that wrote it."
        )
    found = {key: value for key, value in values.items() if value is not None}
    if "metrics" in found:
        found.setdefault("task", "causal-lm")
    metrics = found.get("metrics", {})
    if isinstance(metrics, dict):
        metrics = {"pruning": found.get("pruning"), **metrics}
        known = metrics["pruning"]
        if known is None or (isinstance(known, dict) and "ratio" not in known):
            del metrics["pruning"]
        found["metrics"] = metrics
    return found
