"""Options: unknown ones, values of a wrong kind or out of range, options that exclude each other or need another."""

from __future__ import annotations

from tests.cli.refusals.wrong import Wrong, wrong

PRUNE = "prune model --data data.jsonl -o out"
ONESHOT = "oneshot model --data data.jsonl -o out"

TABLE: tuple[Wrong, ...] = (
    wrong(f"{PRUNE} --ratio 3", "ratio", "[0, 1)"),
    wrong(f"{ONESHOT} --ratio nan", "ratio", "between 0 and 1"),
)
