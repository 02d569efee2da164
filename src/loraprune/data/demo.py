"""The bundled demo model and its text: the standard library and the language reference, which ship with CPython.

The model was trained on this text, and the demo tunes and evaluates on it.
Whole modules are held out, so that the model never trains on evaluation text.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PROMPT = 'def read_lines(path):\n    """Return the lines of a text file."""\n'


def demo_model() -> Path:
    """Return the folder of the bundled checkpoint.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    folder = Path(__file__).parent / "demo-llama"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            "The bundled demo model is missing from this installation. Reinstall loraprune, or train it with "
            "scripts/train_demo_model.py."
        )
    return folder


def demo_data(folder: Path) -> tuple[Path, Path]:
    """Write the demo's text as ``train.jsonl`` and ``held_out.jsonl`` into a folder.

    Raises:
        FileNotFoundError: this Python has no sources of its standard library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, texts in zip(paths, standard_library_text(), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return paths


HELD_OUT_MODULES: tuple[str, ...] = (
    "argparse",
    "configparser",
    "fractions",
    "gzip",
    "heapq",
    "imaplib",
    "optparse",
    "plistlib",
    "shelve",
    "smtplib",
    "statistics",
    "tarfile",
    "textwrap",
)
"""Top-level modules that are used for evaluation only.

None of them has a copy in the standard library (as ``datetime`` has in ``_pydatetime``).
"""

SKIPPED_PARTS: frozenset[str] = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",  # generated tables
        "ensurepip",
        "idlelib",
        "idle_test",
        "lib-dynload",
        "pydoc_data",  # read by `_documentation`
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)

MIN_CHARS = 400
MAX_DOCUMENT_CHARS = 400_000


def library_root() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(top-level module, source text)`` in an order that does not depend on the machine."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in SKIPPED_PARTS)
        for file in sorted(files):
            if not file.endswith(".py") or file.startswith("_sysconfigdata"):
                continue
            path = Path(folder) / file
            module = path.relative_to(root).parts[0].removesuffix(".py")
            text = path.read_text(encoding="utf-8", errors="replace")
            if MIN_CHARS <= len(text) <= MAX_DOCUMENT_CHARS:
                yield module, text


def _documentation() -> list[str]:
    """The language reference that ``help()`` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # stripped installations
        return []
    return [text for _, text in sorted(topics.items()) if len(text) >= MIN_CHARS]


def standard_library_text() -> tuple[list[str], list[str]]:
    """Read the standard library as ``(training documents, held-out documents)``.

    Raises:
        FileNotFoundError: the interpreter has no readable library sources (it is zipped or stripped).
    """
    train: list[str] = []
    held_out: list[str] = []
    for module, text in _sources(library_root()):
        (held_out if module in HELD_OUT_MODULES else train).append(text)
    if not train or not held_out:
        raise FileNotFoundError(
            f"{library_root()} holds no sources of the standard library, which the demo uses as its text. "
            "Install the full Python of your system (on Debian and Ubuntu: python3 rather than python3-minimal)."
        )
    return train + _documentation(), held_out
