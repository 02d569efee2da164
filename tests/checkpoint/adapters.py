"""Adapters on disk, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.models import with_lora
from transformers import AutoModelForCausalLM

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def plain_adapter(folder: Path, base: Path, **changes: Any) -> PeftModel:
    """Save LoRA with random factors on a checkpoint, and give back the model with it."""
    model = with_lora(AutoModelForCausalLM.from_pretrained(base), **changes)
    model.save_pretrained(folder)
    return model


def rewrite(folder: Path, **changes: Any) -> None:
    """Change an adapter's config."""
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_tensors(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Give an adapter's tensors other names; None leaves one out."""
    tensors = load_file(folder / WEIGHTS)
    renamed = {rename(name): value for name, value in tensors.items()}
    save_file({name: value for name, value in renamed.items() if name is not None}, folder / WEIGHTS)
