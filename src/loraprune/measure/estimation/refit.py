"""Memory of a cut with refit besides weights and optimizer: calibration data, second moments, factors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loraprune.calibration.block_by_block import TOKENS_PER_BATCH
from loraprune.calibration.features import block_width
from loraprune.calibration.least_squares import are_few

FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A layer to refit.

    Attributes:
        outputs: outputs of the layer.
        inputs: inputs before the cut.
        kept: inputs after it.
        finished: number of parts of its block whose outputs are kept, because they do not change any more.
    """

    outputs: int
    inputs: int
    kept: int
    finished: int = 0


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


def refit_bytes(consumer: Consumer, data: CalibrationSize) -> int:
    """Return the peak bytes of the refit of one layer after its block has run, including calibration data.

    This follows :meth:`loraprune.calibration.features.FeatureStatistics.add`,
    :func:`loraprune.calibration.least_squares.refit_columns` and :func:`loraprune.surgery.output_error.output_error`
    statement by statement. The layer's own forward pass counts with its input and a few hidden states.
    """
    o, i, k, t = consumer.outputs, consumer.inputs, consumer.kept, data.batch
    moment, kept_moment = i * i * FLOAT, k * k * FLOAT
    passing = t * (i + 3 * data.hidden) * data.itemsize
    single = 0 if data.itemsize == FLOAT else t * i * FLOAT
    # Deviations from the mean; then the products of a batch, one block of them, and those of the batches before it.
    squares, block = t * i * FLOAT, block_width(i) * i * FLOAT
    gathering = passing + single + max(squares, block + moment * (2 if data.own > data.rows else 1))
    weight = o * i * FLOAT
    delta = o * i * FLOAT
    selecting = moment + weight + k * i * FLOAT + kept_moment
    missing = moment + weight + kept_moment + k * i * FLOAT + (k + o) * (i - k) * FLOAT + k * o * FLOAT
    factoring = moment + weight + 3 * kept_moment + k * o * FLOAT
    solving = moment + weight + 2 * kept_moment + 3 * k * o * FLOAT
    reading = moment + weight + 2 * delta
    # With few tokens, two halves come first: the second is collected beside the first and the moment of all rows.
    equations, halves = 2 * (kept_moment + k * o * FLOAT), 0
    if are_few(data.sequences * data.tokens, i):
        trying = equations + 2 * kept_moment + 4 * k * o * FLOAT
        halves = 2 * moment + weight + max(gathering, moment + max(equations + k * i * FLOAT, trying))
    # The error of the cut and of its repair, for the report.
    gone, part = i - k, o * k * FLOAT
    beside = moment + weight + 2 * part + o * gone * FLOAT
    comparing = (
        beside
        + kept_moment
        + max(k * i * FLOAT, gone * i * FLOAT + part + max(gone * gone * FLOAT + 2 * o * gone * FLOAT, 3 * part))
    )
    return data.kept * (1 + consumer.finished) + max(
        gathering, reading, selecting, missing, factoring, solving, comparing, halves
    )


def cut_bytes(consumers: Iterable[Consumer], data: CalibrationSize, block: int) -> int:
    """Return the peak bytes of a cut; consumers are refitted one after the other.

    Args:
        consumers: consumers that lose inputs.
        data: calibration data.
        block: bytes allocated by a block's forward pass on one batch of the data.
    """
    refits = list(consumers)
    going_on = data.kept * (1 + max((consumer.finished for consumer in refits), default=0)) + block
    return max(going_on, *(refit_bytes(consumer, data) for consumer in refits)) if refits else 0
