"""What tells one checkpoint from another: a hash of the files that decide what a model computes."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

DECIDING = (
    "config.json",
    "*.safetensors",
    "*.index.json",
    "adapter_config.json",
    "loraprune_adapter.json",
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "*.py",
)
"""Files that decide it; model cards, records, reports and logs do not."""
BLOCK = 1 << 24


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of the deciding files in a folder, in the order of their names.

    It reads every weight: a second for some gigabytes.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in DECIDING):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def joined(*parts: str) -> str:
    """One fingerprint of several: of an adapter and its base, of a model and the tokenizer of another one."""
    return parts[0] if len(parts) == 1 else f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
