"""The time that records bear; apart from the rest, so that reading records needs no torch."""

from __future__ import annotations

import datetime


def timestamp() -> str:
    """The time now, in ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
