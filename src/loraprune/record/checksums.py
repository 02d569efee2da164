"""Checksums of weight files, to detect files that were changed or truncated later."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from loraprune.record.codec import read_json

_BLOCK = 1 << 24


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 (hexadecimal) of each weight file in a folder, by file name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        found[path.name] = digest.hexdigest()
    return found


def renew(record: Path) -> None:
    """Update the checksums in a record that was copied beside other weights, if the record has checksums."""
    try:
        values = read_json(record)
    except (OSError, ValueError):  # no record, or a damaged one
        return
    if isinstance(values, dict) and values.get("checksums"):
        values["checksums"] = checksums(record.parent)
        record.write_text(json.dumps(values, indent=2), encoding="utf-8")
