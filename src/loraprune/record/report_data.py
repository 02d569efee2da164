"""What a report tells, as plain values that are written as JSON beside the page and read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

from loraprune.record import atomic, codec
from loraprune.record.codec import read_json


class Unit(Enum):
    """What the numbers of a row count; it decides how they are written and compared."""

    PARAMETERS = "parameters"
    BYTES = "bytes"
    PERPLEXITY = "perplexity"
    LOSS = "loss"
    BITS_PER_BYTE = "bits_per_byte"
    MILLISECONDS = "ms"
    TOKENS_PER_SECOND = "tokens_per_second"
    ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """How much of the model is gone.

    Attributes:
        ratio: removed share of the parameters of the prunable dimensions.
        target_ratio: the share that was asked for.
        total_before: all parameters of the dense model; ``total_after``: of the pruned one.
        prunable_before: parameters of the prunable dimensions before; ``prunable_after``: after.
        sparsity: where weights became zero and nothing was removed, what: ``"50% of the weights"``; then the ratio is
            the share of zeros in the linear layers (with a training run: in those that LoRA adapts).
    """

    ratio: float
    target_ratio: float
    total_before: int
    total_after: int
    prunable_before: int
    prunable_after: int
    sparsity: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a run that tunes and prunes nothing did to zeros.

    Attributes:
        zeros_before: share of zeros in the linear layers of the blocks before it; None where the model was not sparse.
        zeros_after: the same after it.
    """

    zeros_before: float | None = None
    zeros_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of the dense model and of the pruned one.

    Attributes:
        label: what was measured, as the reader sees it: ``"Perplexity"``.
        unit: the unit of the three numbers.
        detail: how it was measured: ``"128-token segments, held-out stories"``, ``"batch of 8"``.
        dense: before pruning.
        unrecovered: cut to the same widths, but not tuned afterwards; None where that was not measured.
        pruned: the result.
    """

    label: str
    unit: Unit
    detail: str = ""
    dense: float | None
    unrecovered: float | None = None
    pruned: float | None


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """One training step: its loss, the removed share and parameters after it, seconds since the run began."""

    step: int
    loss: float
    ratio: float
    parameters: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    """Measures on held-out rows after a training step.

    Attributes:
        step: after which the model was measured.
        loss: in nats; ``perplexity`` and ``accuracy``: of tasks that have them.
        after_cuts: whether all cuts were made by then.
        taken: whether the result has the adapter of this step, and not that of the last one.
        seconds: duration of the evaluation.
    """

    step: int
    loss: float
    perplexity: float | None = None
    accuracy: float | None = None
    after_cuts: bool = True
    taken: bool = False
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One cut: removed share after it, and for each kind of dimension the groups kept, layer by layer.

    Attributes:
        step: optimizer step after which it was made.
        ratio: removed share after it.
        widths: by kind, groups kept in each layer.
        stability: by kind, Spearman's rank correlation of the groups' scores with those at the cut before, over the
            groups that were there at both, mean over the layers; empty at the first cut.
        seconds: that the cut took, with its repair.
    """

    step: int
    ratio: float
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stability: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """How many groups of one prunable dimension stayed; ``kind`` is ``"heads"``, ``"channels"`` or another."""

    layer: int
    kind: str
    total: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores of all groups of one prunable dimension, each from the last time that the group was scored."""

    kind: str
    layer: int
    scores: tuple[float, ...]
    kept: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Check that there is one score and one flag for every group."""
        if len(self.scores) != len(self.kept):
            raise ValueError(
                f"{self.kind} of layer {self.layer}: {len(self.scores)} scores, but {len(self.kept)} kept flags. "
                "Give one of each for every group."
            )


@dataclass(frozen=True, kw_only=True)
class GroupMap:
    """Where in a layer groups went.

    Attributes:
        kind: of the groups; ``layer``: theirs.
        kept: shares of groups that stayed, in [0, 1], in runs of neighbors; each run is one cell of the map.
        groups_per_cell: groups in a run (the last may have fewer); 1 where each group has a cell.
    """

    kind: str
    layer: int
    kept: tuple[float, ...]
    groups_per_cell: int = 1


@dataclass(frozen=True, kw_only=True)
class RefitError:
    """What a cut did to the output of the layer that read what went, relative to its output before the cut.

    Attributes:
        step: after which the cut was made; 0 without training.
        kind: of the dimension that was cut; ``layer``: its.
        cut: relative error ``‖(W − W_K)x‖ / ‖Wx‖`` over the calibration data, without a repair. Of a repair towards
            the residual stream of the dense model, what makes that up takes the place of ``Wx`` in both norms.
        repaired: the same after the refit; None where there was none.
    """

    step: int
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One prompt and how each model goes on; the texts do not repeat the prompt."""

    prompt: str
    dense: str
    unrecovered: str | None = None
    pruned: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """A table that opens on request: its title, the heads of its columns, and the cells of every row."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the report of one run shows.

    Attributes:
        title: heading of the page.
        model: name or path of the model that was pruned.
        created: time of the run, ISO 8601.
        headline: how much of the model is gone.
        rows: measures before and after, in the order shown.
        steps: training steps that were made; None in a report that does not know, whose last logged step counts.
        history: the training steps that were logged; empty for a training-free run.
        evaluations: measures on held-out rows during training.
        cuts: the cuts in the order made.
        layers: widths of the result.
        importance: scores by name of prunable dimension.
        maps: where in each layer groups went.
        refit_errors: of each consumer at each cut, in the order made.
        scores: accuracies of tasks, as ``loraprune eval`` measured them.
        phases: seconds by phase of the run, in their order.
        completions: texts before and after.
        settings: the configuration, nested as it comes; values are shown as text.
        versions: versions of the libraries by name.
        command: the command line, or empty where there was none.
        notes: what the reader has to know: warnings, widths that were rounded.
        machine: what it ran on, by property.
        details: further tables.
        recovery: of a run that tunes and prunes nothing; None of one that prunes.
        before: heads what is told of the model before the run; ``after``: what is told of the result.
    """

    title: str
    model: str
    created: str
    headline: Headline
    rows: tuple[Row, ...] = ()
    steps: int | None = None
    history: tuple[HistoryPoint, ...] = ()
    evaluations: tuple[EvaluationPoint, ...] = ()
    cuts: tuple[Cut, ...] = ()
    layers: tuple[LayerWidth, ...] = ()
    importance: Mapping[str, Importance] = field(default_factory=dict)
    maps: tuple[GroupMap, ...] = ()
    refit_errors: tuple[RefitError, ...] = ()
    scores: tuple[Row, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    completions: tuple[Completion, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    notes: tuple[str, ...] = ()
    machine: Mapping[str, object] = field(default_factory=dict)
    details: tuple[Details, ...] = ()
    recovery: Recovery | None = None
    before: str = "dense"
    after: str = "pruned"

    def to_json(self, path: str | Path) -> None:
        """Write the data as strict JSON, one top-level field a line; NaN and infinities become ``null``."""
        lines = (
            f"{json.dumps(entry.name)}: {_dumps(codec.encode(getattr(self, entry.name)))}" for entry in fields(self)
        )
        atomic.write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "ReportData":
        """Read what `to_json` wrote; ``null`` in place of a number becomes NaN.

        Raises:
            ValueError: the file is no JSON, or a field is missing or of another type.
        """
        try:
            value = read_json(Path(path))
            return codec.decode(cls, value)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a report: {error}") from error


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(", ", ": "))
