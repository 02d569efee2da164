"""Fingerprints of checkpoints: a hash of the files that determine what a model computes."""

from __future__ import annotations

import hashlib
import uuid
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
    "processor_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "dict.txt",
    "*.model",
    "*.spm",
    "*.codes",
    "*.tiktoken",
    "*.py",
)
"""Files that determine what a model computes; model cards, records, reports and logs do not."""
_BLOCK = 1 << 24


def folder_fingerprint(folder: Path) -> str:
    """Return a SHA-256 over names, sizes and contents of the ``DECIDING`` files in a folder, in order of their names.

    It reads every weight, which takes about a second for a few gigabytes.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in DECIDING):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def hub_folder(name: str, revision: str | None) -> Path | None:
    """Return the cache folder of a Hub checkpoint; None if it was not downloaded. Makes no request to the Hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        stored = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # not a valid name on the Hub
        return None
    return Path(stored).parent if isinstance(stored, str) else None


def hub_fingerprint(name: str, revision: str | None) -> str:
    """Return the commit of a Hub checkpoint's cached files. Makes no request to the Hub.

    If the commit is unknown, every fingerprint is unique, so that no figure of another commit is reused.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import extract_commit_hash

    for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        stored = try_to_load_from_cache(name, file, revision=revision)
        commit = extract_commit_hash(stored, None) if isinstance(stored, str) else None
        if commit is not None:
            return f"hub:{name}@{commit}"
    return f"hub:{name}@{revision or 'main'}, commit unknown, {uuid.uuid4().hex}"


def joined_fingerprint(*parts: str) -> str:
    """Join several fingerprints, such as those of an adapter and its base, or of a model and a separate tokenizer."""
    return parts[0] if len(parts) == 1 else f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
