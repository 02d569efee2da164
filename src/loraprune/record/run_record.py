"""The record of a run, ``pruning.json``: its settings, its model and data, and its course."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprune.record import atomic
from loraprune.record.checksums import checksums
from loraprune.record.codec import LEFT_OUT, decode, encode, read_json
from loraprune.record.pruning_course import PruningCourse
from loraprune.record.report_data import EvaluationPoint, HistoryPoint

RECORD_FILE = "pruning.json"
RECORD_VERSION = 1
"""Version of the file format. A record without a version predates the first one and is :func:`upgraded` when read."""


@dataclass(frozen=True, kw_only=True)
class ModelMeasures:
    """Measures of one model; None if not measured, NaN if the value was not finite.

    Attributes:
        parameters: all parameters; ``nonzero``: nonzero ones of a sparse model; ``bytes``: size of the weights.
        perplexity: on held-out rows, like ``bits_per_byte``, ``loss`` (nats), ``accuracy`` and ``exact_match``.
        num_tokens: predicted tokens, in segments of ``segment_length``.
        num_not_finite: segments, out of ``num_segments``, whose loss was not finite; None if all were finite.
        num_examples: classified examples; ``num_generated``: generated targets.
        data_fingerprint: hash of the model's inputs for these measures; see :mod:`loraprune.metrics.fingerprint`.
        completion: completion of the run's prompt.
        latency_ms: latency of a forward pass on ``latency_tokens`` or on ``latency_input``.
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
class ZeroCounts:
    """Zeros of the blocks' linear layers: share, counts of zeros and weights, and shares by kind of matrix."""

    share: float
    zeros: int
    weights: int
    kinds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """One mask update of PST, which adds zeros: the share of zeros after it."""

    step: int
    ratio: float


@dataclass(frozen=True, kw_only=True)
class MatrixRecord:
    """Result for one matrix.

    Attributes:
        name: name of the matrix in the model; ``layer``: index of its block; ``kind``: its place in the block.
        weights: number of weights; ``zeros``: zeros after the run; ``zeros_before``: before it; ``seconds``: time
            spent, without passing the calibration data through the block.
        error: squared error of its outputs as a share of the squared outputs, if the method computes it.
        damping: damping that its updates needed, if the method uses any.
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
    """How weights became zero (``pattern`` to ``matrices``), or how many were zero throughout.

    Attributes:
        pattern: ``"2:4"``, ``"50%"``; None for a recovery run.
        target: requested share of zeros; ``reached``: actual share.
        zeros: number of zeros among the ``weights`` that could become zero.
        masks: mask updates of PST; ``matrices``: results of a run without training.
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
        dense: the model before the run; ``pruned``: the result; ``unrecovered``: the same cuts and nothing else.
        calibration: amount of data that a run without training used; ``data``: use of the rows.
        pruning: for a run that removes groups; ``sparsity``: for a run that creates or finds zeros.
        steps: training steps; ``history``: logged steps; ``evaluations``: on held-out rows; ``skipped_steps``: NaN
            steps.
        seconds: duration of the whole run; ``phases``: durations by phase, in order.
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
    """Options of a run by part. The parts depend on the recipe and on the criterion."""

    pruning: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    recovery: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    oneshot: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    base: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    lora: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    distillation: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)
    training: Mapping[str, Any] | None = field(default=None, metadata=LEFT_OUT)

    @property
    def recipe(self) -> str | None:
        """``"prune"``, ``"oneshot"`` or ``"recover"``; None without settings."""
        named = {"oneshot": self.oneshot, "recover": self.recovery, "prune": self.pruning}
        return next((name for name, part in named.items() if part), None)

    @property
    def method(self) -> str | None:
        """Name of the criterion."""
        return (self.oneshot or {}).get("method") or (self.pruning or {}).get("criterion")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Properties of the machine that affect speed."""

    platform: str | None = field(default=None, metadata=LEFT_OUT)
    processor: str | None = field(default=None, metadata=LEFT_OUT)
    cpus: int | None = field(default=None, metadata=LEFT_OUT)
    threads: int | None = field(default=None, metadata=LEFT_OUT)
    accelerator: str | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class History:
    """Summary of the previous run in the record of the next one.

    Attributes:
        base_model: model that the previous run started from.
        created: time of the run; ``recipe``: ``"prune"``, ``"oneshot"`` or ``"recover"``.
        method: name of the criterion.
        ratio: removed share; ``pattern`` and ``sparsity``: pattern and share of the zeros of a sparse model.
        base_pruning: the same summary of the run before that.
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
        """``"2:4 sparse by `wanda`"``, ``"50 % of the prunable parameters removed by `fisher`"``; empty if unknown."""
        method = f" by `{self.method}`" if self.method else ""
        if self.pattern is not None:
            return f"{self.pattern} sparse{method}"
        if self.ratio:
            return f"{100 * self.ratio:.0f} % of the prunable parameters removed{method}"
        before = self.base_pruning
        if before not in (None, History()) and (before.pattern is None or self.sparsity):
            return before.in_words()
        return f"{self.sparsity:.0%} sparse" if self.sparsity else ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The complete record of a run, saved as ``pruning.json``.

    Attributes:
        version: version of the file format.
        base_model: name or folder of the model that the run started from.
        task: name of the model's task.
        created: time, ISO 8601.
        command: the command line, if there was one.
        settings: settings of the run.
        metrics: measures, and the course of the run.
        plan: groups kept, by name of the prunable dimension.
        versions: versions of libraries.
        machine: machine of the run.
        recipe: the options in the form that ``--config`` accepts.
        base_pruning: how the starting model was made, if known.
        checksums: SHA-256 of the weight files, by name; None in older records.
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
            folder: folder of the run, or the file itself.

        Raises:
            ValueError: the file is missing, damaged, not a record, or of a later version.
        """
        path = Path(folder)
        path = path / RECORD_FILE if path.is_dir() else path
        try:
            return decode(cls, upgraded(read_json(path)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged or not the record of a run: {error}") from error

    def write(self, folder: Path) -> RunRecord:
        """Write the record into the folder of a run as strict JSON; NaN and infinities become ``null``.

        Returns:
            The record as written, with the checksums of the existing weight files.
        """
        written = replace(self, checksums=checksums(folder) or None)
        text = json.dumps(encode(written), indent=2, allow_nan=False)
        atomic.write_text(folder / RECORD_FILE, text)
        return written

    def summary(self) -> History:
        """Return the method and amount of pruning, and the base's history from the record."""
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
    """Convert the parsed JSON of a record to the current version.

    Records without a version have the format of the first one. Records of :func:`loraprune.save_pruned` and
    :func:`loraprune.save` have no measures and store the course of pruning beside the settings. Older ones may lack
    fields, which take their defaults; ``null`` means unknown. The oldest name no task, because only one existed.

    Raises:
        ValueError: it is not a record, or it is from a later version.
    """
    if not isinstance(values, dict):
        return values
    version = values.get("version", RECORD_VERSION)
    if version != RECORD_VERSION:
        raise ValueError(
            f"it has version {version!r} of the record format, but this loraprune reads version {RECORD_VERSION}. "
            "Install the version of loraprune that wrote it."
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
