"""What tells a weight file that is whole from one that was changed or cut short since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from loraprune.record.codec import read_json

_BLOCK = 1 << 24


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the weight files in a folder, in hexadecimal digits, by file name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        found[path.name] = digest.hexdigest()
    return found


def renew(record: Path) -> None:
    """Let a record that was copied beside other weights say the checksums of these, where it says any."""
    try:
        values = read_json(record)
    except (OSError, ValueError):  # there is none, or it is damaged
        return
    if isinstance(values, dict) and values.get("checksums"):
        values["checksums"] = checksums(record.parent)
        record.write_text(json.dumps(values, indent=2), encoding="utf-8")
