"""Models: folders that are none, configs that are invalid or strict, weights and tokenizers that do not fit."""

from __future__ import annotations

from tests.cli.refusals.wrong import Wrong

TABLE: tuple[Wrong, ...] = ()
