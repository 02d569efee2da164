"""Recipes: values of a wrong kind, keys twice, keys that have no place, recipes of another command."""

from __future__ import annotations

from tests.cli.refusals.wrong import Wrong

TABLE: tuple[Wrong, ...] = ()
