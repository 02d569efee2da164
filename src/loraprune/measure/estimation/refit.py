"""Memory of a cut with refit besides weights and optimizer: calibration data, second moments, factors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loraprune.calibration.block_by_block import TOKENS_PER_BATCH
from loraprune.calibration.least_squares import are_few

FLOAT, DOUBLE = 4, 8


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A layer to refit.

    Attributes:
        outputs: outputs of the layer.
        inputs: inputs before the cut.
        kept: inputs after it.
    """

    outputs: int
    inputs: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class CalibrationSize:
    """The calibration data of a refit.

    Attributes:
        sequences: number of sequences.
        tokens: tokens per sequence.
        hidden: width of the hidden states.
        itemsize: bytes of one number in them.
        processes: number of processes that share the sequences.
    """

    sequences: int
    tokens: int
    hidden: int
    itemsize: int
    processes: int = 1

    @property
    def own(self) -> int:
        """Maximum number of sequences of one process."""
        return -(-self.sequences // self.processes)

    @property
    def kept(self) -> int:
        """Bytes of the hidden states that pass from block to block."""
        return self.own * self.tokens * self.hidden * self.itemsize

    @property
    def rows(self) -> int:
        """Number of sequences that pass through a block at the same time."""
        return min(max(TOKENS_PER_BATCH // self.tokens, 1), self.own)

    @property
    def batch(self) -> int:
        """Tokens of these sequences."""
        return self.rows * self.tokens


def refit_bytes(consumer: Consumer, data: CalibrationSize, *, device: str = "cuda") -> int:
    """Return the peak bytes of the refit of one layer after its block has run, including calibration data.

    This follows :meth:`loraprune.calibration.features.FeatureStatistics.add`,
    :func:`loraprune.calibration.least_squares.refit_columns` and :func:`loraprune.surgery.output_error.output_error`
    statement by statement. The layer's own forward pass counts with its input and a few hidden states.
    """
    o, i, k, t = consumer.outputs, consumer.inputs, consumer.kept, data.batch
    moment, kept_moment = i * i * FLOAT, k * k * FLOAT
    passing = t * (i + 3 * data.hidden) * data.itemsize
    single = 0 if data.itemsize == FLOAT else t * i * FLOAT
    # Squares are summed in 64 bits, in a copy; on a CPU this copy is not counted.
    squares = t * i * (FLOAT + (DOUBLE if device == "cuda" else 0))
    gathering = passing + single + max(squares, 2 * moment)
    weight = o * i * FLOAT
    delta = o * i * FLOAT
    selecting = moment + weight + k * i * FLOAT + kept_moment
    missing = moment + weight + kept_moment + k * i * FLOAT + (k + o) * (i - k) * FLOAT + k * o * FLOAT
    factoring = moment + weight + 3 * kept_moment + k * o * FLOAT
    solving = moment + weight + 2 * kept_moment + 3 * k * o * FLOAT
    reading = moment + weight + 2 * delta
    # With few tokens, the equations of two halves come first: the second is collected beside the first and all sums.
    equations, halves = kept_moment + k * o * FLOAT, 0
    if are_few(data.sequences * data.tokens, i):
        halves = 2 * moment + weight + equations + max(gathering, k * i * FLOAT + equations + 2 * kept_moment)
    # The error of the cut and of its repair, for the report.
    gone, part = i - k, o * k * FLOAT
    beside = moment + weight + 2 * part + o * gone * FLOAT
    comparing = (
        beside
        + kept_moment
        + max(k * i * FLOAT, gone * i * FLOAT + part + max(gone * gone * FLOAT + 2 * o * gone * FLOAT, 3 * part))
    )
    return data.kept + max(gathering, reading, selecting, missing, factoring, solving, comparing, halves)


def cut_bytes(consumers: Iterable[Consumer], data: CalibrationSize, block: int, *, device: str = "cuda") -> int:
    """Return the peak bytes of a cut; consumers are refitted one after the other.

    Args:
        consumers: consumers that lose inputs.
        data: calibration data.
        block: bytes allocated by a block's forward pass on one batch of the data.
        device: device of the computation.
    """
    found = [refit_bytes(consumer, data, device=device) for consumer in consumers]
    return max(*found, data.kept + block) if found else 0
