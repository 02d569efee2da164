"""Data: files that are none, rows that do not fit, sources that cannot be read."""

from __future__ import annotations

from tests.cli.refusals.wrong import Wrong

TABLE: tuple[Wrong, ...] = ()
