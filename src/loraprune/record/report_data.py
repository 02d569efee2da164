"""Content of a report, as plain values that are written as JSON beside the page and read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

from loraprune.record import atomic, codec
from loraprune.record.codec import read_json


class Unit(Enum):
    """Unit of the numbers in a row, which decides how they are formatted and compared."""

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
    """Removed share of the model.

    Attributes:
        ratio: removed share of the prunable parameters (those of the prunable dimensions).
        target_ratio: requested share.
        total_before: number of parameters of the dense model; ``total_after``: of the pruned one.
        prunable_before: number of prunable parameters before; ``prunable_after``: after.
        sparsity: for a run that sets weights to zero and removes nothing, the pattern: ``"50% of the weights"``.
            ``ratio`` is then the share of zeros in the linear layers (after a training run: in the layers that LoRA
            adapts).
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
    """Effect of a recovery run, which prunes nothing, on the zeros.

    Attributes:
        zeros_before: share of zeros in the linear layers of the blocks before the run; None if the model was not
            sparse.
        zeros_after: the same share after the run.
    """

    zeros_before: float | None = None
    zeros_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of the dense model and of the pruned one.

    Attributes:
        label: name of the measure for the reader: ``"Perplexity"``.
        unit: unit of the three numbers.
        detail: conditions: ``"128-token segments, held-out stories"``, ``"batch of 8"``.
        dense: value before pruning.
        unrecovered: value of the model cut to the same widths but not tuned; None if it was not measured.
        pruned: value of the result.
    """

    label: str
    unit: Unit
    detail: str = ""
    dense: float | None
    unrecovered: float | None = None
    pruned: float | None


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """One training step: its loss, the removed share and the parameters after it, and seconds since the start."""

    step: int
    loss: float
    ratio: float
    parameters: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    """Measures on held-out rows after a training step.

    Attributes:
        step: training step before the evaluation.
        loss: in nats; ``perplexity`` and ``accuracy``: for tasks that have them.
        after_cuts: whether all cuts were made before this evaluation.
        taken: whether the result has the adapter of this step instead of the last one.
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
    """One cut: the removed share after it, and the groups kept in each layer for each kind of dimension.

    Attributes:
        step: optimizer step before the cut.
        ratio: removed share after the cut.
        widths: groups kept in each layer, by kind.
        stability: by kind, Spearman's rank correlation of the groups' scores with their scores at the previous cut,
            over the groups present at both cuts, averaged over the layers; empty at the first cut.
        seconds: duration of the cut and its repair.
    """

    step: int
    ratio: float
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stability: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """Number of groups kept in one prunable dimension; ``kind`` is ``"heads"``, ``"channels"`` or another."""

    layer: int
    kind: str
    total: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores of all groups of one prunable dimension, each from the last time the group was scored."""

    kind: str
    layer: int
    scores: tuple[float, ...]
    kept: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Check that every group has one score and one flag."""
        if len(self.scores) != len(self.kept):
            raise ValueError(
                f"{self.kind} of layer {self.layer}: {len(self.scores)} scores, but {len(self.kept)} kept flags. "
                "Give one of each for every group."
            )


@dataclass(frozen=True, kw_only=True)
class GroupMap:
    """Positions of the removed groups in a layer.

    Attributes:
        kind: kind of the groups; ``layer``: their layer.
        kept: shares of groups kept, in [0, 1], for runs of neighboring groups; each run is one cell of the map.
        groups_per_cell: groups per run (the last may have fewer); 1 if each group has a cell.
    """

    kind: str
    layer: int
    kept: tuple[float, ...]
    groups_per_cell: int = 1


@dataclass(frozen=True, kw_only=True)
class RefitError:
    """Error of the output of one consumer after a cut, relative to its output before the cut.

    Attributes:
        step: training step before the cut; 0 without training.
        kind: kind of the cut dimension; ``layer``: its layer.
        cut: relative error ``‖(W − W_K)x‖ / ‖Wx‖`` over the calibration data, without a repair. If the repair targets
            the residual stream of the dense model, both norms use the output that would reproduce that stream in place
            of ``Wx``.
        repaired: the same error after the repair; None without a repair.
    """

    step: int
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One prompt and the completion of each model. The completions do not repeat the prompt."""

    prompt: str
    dense: str
    unrecovered: str | None = None
    pruned: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """A collapsible table: its title, column headings and the cells of every row."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Content of the report of one run.

    Attributes:
        title: heading of the page.
        model: name or path of the model that was pruned.
        created: time of the run, ISO 8601.
        headline: removed share of the model.
        rows: measures before and after, in display order.
        steps: number of training steps; None in a report without it, for which the last logged step counts.
        history: logged training steps; empty for a training-free run.
        evaluations: measures on held-out rows during training.
        cuts: cuts in order.
        layers: widths of the result.
        importance: scores by name of prunable dimension.
        maps: positions of the removed groups in each layer.
        refit_errors: errors of each consumer at each cut, in order.
        scores: task accuracies that ``loraprune eval`` measured.
        phases: seconds by phase of the run, in order.
        completions: completions before and after.
        settings: nested configuration; values are shown as text.
        versions: versions of the libraries by name.
        command: the command line; empty if there was none.
        notes: warnings and remarks for the reader, such as rounded widths.
        machine: properties of the machine.
        details: further tables.
        recovery: result of a recovery run, which prunes nothing; None for a run that prunes.
        before: heading for the model before the run; ``after``: heading for the result.
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
        """Write the data as strict JSON, one top-level field per line; NaN and infinities become ``null``."""
        lines = (
            f"{json.dumps(entry.name)}: {_dumps(codec.encode(getattr(self, entry.name)))}" for entry in fields(self)
        )
        atomic.write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "ReportData":
        """Read the output of `to_json`; ``null`` in place of a number becomes NaN.

        Raises:
            ValueError: the file is not JSON, or a field is missing or has the wrong type.
        """
        try:
            value = read_json(Path(path))
            return codec.decode(cls, value)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a report: {error}") from error


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(", ", ": "))
