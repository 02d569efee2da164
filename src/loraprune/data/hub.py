"""A check whether the Hub answers, so that libraries do not each retry for a minute."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 3.0
"""Seconds to wait for the Hub's answer."""
_REMEMBERED = 60.0
"""Seconds for which the outcome of a check counts."""

_answers: dict[str, tuple[float, bool]] = {}


def missing_hub() -> str | None:
    """Return why nothing can be fetched from the Hub, as the end of a sentence; None if the Hub seems reachable.

    With ``HF_HUB_OFFLINE=0``, the Hub counts as reachable without a check.
    """
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    when, answers = _answers.get(endpoint, (-_REMEMBERED, True))
    if time.monotonic() - when > _REMEMBERED:
        if constants.HF_HUB_OFFLINE:
            return "downloads from the Hub are off (HF_HUB_OFFLINE)"
        if os.environ.get("HF_HUB_OFFLINE") == "0":
            return None
        answers = _answers_in_time(endpoint)
        _answers[endpoint] = time.monotonic(), answers
    return None if answers else f"the Hub ({endpoint}) cannot be reached"


def _answers_in_time(endpoint: str) -> bool:
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(endpoint, timeout=PATIENCE)
        except Exception:  # no address, no connection, no proxy, no certificate
            pass
        else:
            answered.set()
        done.set()

    done = threading.Event()
    # A daemon thread, so that the program can end while a server does not answer.
    threading.Thread(target=ask, daemon=True).start()
    done.wait(PATIENCE)
    return answered.is_set()


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Let libraries read only their caches if ``name`` is not a local path and the Hub does not answer.

    Args:
        name: local path, or name on the Hub.
    """
    from huggingface_hub import constants

    if Path(name).expanduser().exists() or constants.HF_HUB_OFFLINE or missing_hub() is None:
        yield
        return
    import datasets  # late: it takes a second to import, and is needed only when the Hub does not answer

    places: tuple[Any, ...] = (constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
