"""Commands on finished runs and measurements: eval, bench, report, compare, verify, export, plan, inspect."""

from __future__ import annotations

from tests.cli.refusals.wrong import Wrong

TABLE: tuple[Wrong, ...] = ()
