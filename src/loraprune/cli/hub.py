"""Finds out whether the hub can be reached at all, before libraries try it again and again."""

from __future__ import annotations

import logging
import os
import socket
import threading
from urllib.parse import urlparse
from urllib.request import getproxies

logger = logging.getLogger("loraprune")

PATIENCE = 3.0
"""Seconds that a name server has."""


def stay_offline_without_hub() -> None:
    """Let libraries read their caches only where the hub's name has no address; else they try for a minute.

    Must be called before ``huggingface_hub`` is imported, which reads the environment then. Nothing is concluded where
    a proxy asks name servers in our place, or where these take too long.
    """
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    host = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if host is not None and _has_no_address(host):
        os.environ["HF_HUB_OFFLINE"] = "1"
        logger.warning("%s has no address here: what is not in the hub's cache cannot be read.", host)


def _has_no_address(host: str) -> bool:
    unknown = threading.Event()

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            unknown.set()

    # A daemon, so that a name server that never answers does not keep the program from ending.
    search = threading.Thread(target=look_up, daemon=True)
    search.start()
    search.join(PATIENCE)
    return unknown.is_set()
