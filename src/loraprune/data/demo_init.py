"""The bundled demo model and the text that goes with it."""

from __future__ import annotations

import json
from pathlib import Path

from loraprune.data.demo import standard_library_text

PROMPT = 'def read_lines(path):\n    """Return the lines of a text file."""\n'


def demo_model() -> Path:
    """Folder of the bundled checkpoint.

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
        FileNotFoundError: this Python carries no sources of its standard library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, texts in zip(paths, standard_library_text(), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return paths
