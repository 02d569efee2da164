"""Small models of every family and variant that can be pruned: the rows of the contract of architectures.

A family is added by a :class:`~tests.zoo.row.Row` in one of the modules below.
"""

from __future__ import annotations

from tests.zoo import decoders, encoders, experts
from tests.zoo.row import Row

ROWS: tuple[Row, ...] = (*decoders.ROWS, *experts.ROWS, *encoders.ROWS)

__all__ = ["ROWS", "Row"]
