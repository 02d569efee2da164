"""What tells one checkpoint from another: a hash of the files that decide what a model computes."""

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
"""Files that decide it; model cards, records, reports and logs do not."""
_BLOCK = 1 << 24


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of the deciding files in a folder, in the order of their names.

    It reads every weight: a second for some gigabytes.
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
    """Where the files of a hub checkpoint lie that were fetched; None where none were. Nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        stored = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no name that a checkpoint on the hub can have
        return None
    return Path(stored).parent if isinstance(stored, str) else None


def hub_fingerprint(name: str, revision: str | None) -> str:
    """The commit of a hub checkpoint, as its files were fetched; nothing is asked of the hub.

    Where it cannot be told, no two fingerprints are equal, so that no figure of another commit is taken for its own.
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
    """One fingerprint of several: of an adapter and its base, of a model and the tokenizer of another one."""
    return parts[0] if len(parts) == 1 else f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
