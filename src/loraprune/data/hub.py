"""Whether the hub answers: asked once, before libraries try it again and again, each of them for a minute."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 3.0
"""Seconds that the hub has to answer."""
_REMEMBERED = 60.0
"""Seconds that an answer, or none, is taken for granted."""

_answers: dict[str, tuple[float, bool]] = {}


def missing_hub() -> str | None:
    """Why nothing can be fetched from the hub, as the end of a sentence; None where it can, for all that is known.

    Where ``HF_HUB_OFFLINE`` says ``0``, nobody is asked.
    """
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    when, answers = _answers.get(endpoint, (-_REMEMBERED, True))
    if time.monotonic() - when > _REMEMBERED:
        if constants.HF_HUB_OFFLINE:
            return "downloads from the hub are off (HF_HUB_OFFLINE)"
        if os.environ.get("HF_HUB_OFFLINE") == "0":
            return None
        answers = _answers_in_time(endpoint)
        _answers[endpoint] = time.monotonic(), answers
    return None if answers else f"the hub ({endpoint}) cannot be reached"


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
    # A daemon, so that a server that never answers does not keep the program from ending.
    threading.Thread(target=ask, daemon=True).start()
    done.wait(PATIENCE)
    return answered.is_set()


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Let libraries read their caches only, where ``name`` is that of the hub and the hub does not answer.

    Args:
        name: a path, which needs no hub, or a name.
    """
    from huggingface_hub import constants

    if Path(name).expanduser().exists() or constants.HF_HUB_OFFLINE or missing_hub() is None:
        yield
        return
    import datasets  # late: it takes a second to import, and only a missing hub needs it

    places: tuple[Any, ...] = (constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
